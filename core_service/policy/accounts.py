"""Users and groups of the policy as numbers, by the system's databases, at the time when it is read."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Sequence
from dataclasses import dataclass, field

from core_service.policy.errors import PolicyError, Where
from core_service.policy.form import User


@dataclass(frozen=True, slots=True)
class People:
    """Users, and groups by which others belong to them, too. `everybody` needs no list."""

    uids: frozenset[int] = field(default_factory=frozenset)
    gids: frozenset[int] = field(default_factory=frozenset)
    everybody: bool = False

    def include(self, uid: int, gid: int) -> bool:
        """Whether a process of this user and group is one of them."""
        return self.everybody or uid in self.uids or gid in self.gids


def uid_of(user: User, where: Where) -> int:
    """Raises PolicyError."""
    if isinstance(user, int):
        return _number(user, where)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise PolicyError(f"there is no user {user!r}", where) from None


def group_of(group: User, where: Where) -> People:
    """A group and its members. Raises PolicyError."""
    if isinstance(group, int):
        return People(gids=frozenset({_number(group, where)}))
    try:
        found = grp.getgrnam(group)
    except KeyError:
        raise PolicyError(f"there is no group {group!r}", where) from None
    named = set(found.gr_mem)
    members = (
        each.pw_uid
        for each in pwd.getpwall()
        if each.pw_gid == found.gr_gid or each.pw_name in named
    )
    return People(frozenset(members), frozenset({found.gr_gid}))


def people(
    users: Sequence[User] | None, groups: Sequence[User] | None, where: Where = ()
) -> People:
    """Those of two lists; everybody where there is neither. Raises PolicyError, also for an empty one:
    who took the last name out of it did not mean everybody."""
    for key, names in (("users", users), ("groups", groups)):
        if names is not None and not names:
            why = "names nobody; leave it out for everybody, or the rule for nobody"
            raise PolicyError(why, (*where, key))
    if users is None and groups is None:
        return People(everybody=True)
    uids = {uid_of(user, (*where, "users")) for user in users or ()}
    gids: set[int] = set()
    for group in groups or ():
        found = group_of(group, (*where, "groups"))
        uids |= found.uids
        gids |= found.gids
    return People(frozenset(uids), frozenset(gids))


def mixed(names: Sequence[User], where: Where) -> People:
    """Those of one list of users and `@group`s, the number of a group among them. Raises PolicyError."""
    if not names:
        return People()
    users = [name for name in names if not str(name).startswith("@")]
    named = [name[1:] for name in names if isinstance(name, str) and name.startswith("@")]
    groups = [int(name) if name.isascii() and name.isdecimal() else name for name in named]
    uids = {uid_of(user, where) for user in users}
    gids: set[int] = set()
    for group in groups:
        found = group_of(group, where)
        uids |= found.uids
        gids |= found.gids
    return People(frozenset(uids), frozenset(gids))


def _number(number: int, where: Where) -> int:
    if not 0 <= number < 1 << 32:
        raise PolicyError(f"{number} is no id: 0 to {(1 << 32) - 1}", where)
    return number
