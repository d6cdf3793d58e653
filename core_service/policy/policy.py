"""What follows from the policy for a client and for a session."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from core_service.policy.accounts import People

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from core_service.identity import Identity
    from core_service.settings import Settings


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What one client may have, and his user with all his clients. RAM in bytes."""

    ram: int
    capabilities: int
    user_ram: int
    user_capabilities: int
    connections: int
    rom_paths: tuple[Path, ...] = ()


ONLOOKER: Final = ClientLimits(
    ram=0, capabilities=0, user_ram=0, user_capabilities=0, connections=64
)


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What a session may be, and how many of those whose labels begin with `label` a user may have.
    `engines` None is any; `priority` is the most urgent, as of nice(1); no `cpus` are all;
    `engine_memory` in bytes and `engine_cpu` in percent of a CPU bound the engine's cgroup, None does
    not."""

    label: str
    sessions: int
    vcpus: int | None = None
    engines: tuple[str, ...] | None = None
    priority: int = 0
    cpus: frozenset[int] = frozenset()
    engine_memory: int | None = None
    engine_cpu: int | None = None


@dataclass(frozen=True, slots=True)
class Sight:
    """Whose objects a client sees in lists and in the audit, besides his own."""

    everything: bool = False
    uids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: for whom, and what. A rule with a label says nothing of clients."""

    people: People
    client: ClientLimits
    session: SessionLimits
    sees: People = field(default_factory=People)

    def is_for(self, identity: Identity) -> bool:
        """Whether it is about this process."""
        return self.people.include(identity.uid, identity.gid)


@dataclass(frozen=True, slots=True)
class Policy:
    """The first rule that fits counts. `ram` in bytes, with `capabilities` and `sessions` of core as a
    whole. `digest` is the SHA-256 of the file; empty without one."""

    ram: int
    capabilities: int
    sessions: int
    operators: People
    rules: Sequence[Rule]
    digest: str = ""

    def client(self, identity: Identity) -> ClientLimits | None:
        """For a process that connects; None: it is not let in. An operator is, to see and to drain, also
        where no rule gives him anything."""
        found = next((rule.client for rule in self._of(identity) if not rule.session.label), None)
        if found is None and self.operators.include(identity.uid, identity.gid):
            return ONLOOKER
        return found

    def session(self, identity: Identity, label: str) -> SessionLimits | None:
        """For a session that it opens; None: not with this label."""
        fits = (r.session for r in self._of(identity) if label.startswith(r.session.label))
        return next(fits, None)

    def sight(self, identity: Identity) -> Sight:
        """Whom it sees."""
        uids: set[int] = set()
        for rule in self._of(identity):
            uids |= rule.sees.uids
        return Sight(self.operators.include(identity.uid, identity.gid), frozenset(uids))

    def _of(self, identity: Identity) -> Iterator[Rule]:
        return (rule for rule in self.rules if rule.is_for(identity))


def default_limits(settings: Settings) -> ClientLimits:
    """Of a client where policy does not say more."""
    return ClientLimits(
        ram=settings.client_ram,
        capabilities=settings.client_capabilities,
        user_ram=settings.ram,
        user_capabilities=settings.capabilities,
        connections=settings.connections_per_user,
    )


def default_operators() -> People:
    """Core's own user and root, who can look into everything anyway."""
    return People(frozenset({0, os.geteuid()}))


def default_policy(settings: Settings) -> Policy:
    """Without a file: everybody who can connect has the limits of the settings."""
    rule = Rule(
        People(everybody=True),
        default_limits(settings),
        SessionLimits(label="", sessions=settings.sessions_per_user),
    )
    return Policy(
        ram=settings.ram,
        capabilities=settings.capabilities,
        sessions=settings.sessions,
        operators=default_operators(),
        rules=(rule,),
    )
