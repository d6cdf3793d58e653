"""The policy file, read and understood as a whole: a file with one mistake is not used at all."""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from core_service.engine.catalog import KINDS
from core_service.policy.accounts import People, mixed, people
from core_service.policy.errors import PolicyError, Where
from core_service.policy.form import PolicyForm, RuleForm, cpus, formed, size
from core_service.policy.policy import (
    ClientLimits,
    Policy,
    Rule,
    SessionLimits,
    default_limits,
    default_operators,
    default_policy,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from core_service.settings import Settings

BYTES: Final = 1 << 20
CLIENT_KEYS: Final = (
    "ram",
    "capabilities",
    "client_ram",
    "client_capabilities",
    "connections",
    "rom_paths",
    "audit",
)
ENGINES: Final = tuple(kind.name for kind in KINDS)


def load(file: Path | None, settings: Settings) -> Policy:
    """The policy of a file, the default without. Raises PolicyError, which names file and line."""
    if file is None:
        return default_policy(settings)
    text = ""
    try:
        text = _read(file)
        policy = _understood(formed(_parsed(text)), settings)
        return replace(policy, digest=hashlib.sha256(text.encode()).hexdigest())
    except PolicyError as error:
        line = error.line or _line_of(text, error.where)
        raise PolicyError(error.why, error.where, line, file) from error


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            raw = opened.read(BYTES + 1)
    except OSError as error:
        raise PolicyError(f"cannot be read: {error.strerror}") from error
    if len(raw) > BYTES:
        raise PolicyError(f"has more than {BYTES} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise PolicyError("is not UTF-8", line=line) from error


def _parsed(text: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        raise PolicyError(str(error), line=line) from error


def _understood(form: PolicyForm, settings: Settings) -> Policy:
    default = default_policy(settings)
    limits = form.limits
    policy = replace(
        default,
        ram=size(limits.ram, ("limits", "ram"), default.ram),
        capabilities=default.capabilities if limits.capabilities is None else limits.capabilities,
        sessions=default.sessions if limits.sessions is None else limits.sessions,
    )
    within = replace(
        default_limits(settings), user_ram=policy.ram, user_capabilities=policy.capabilities
    )
    rules = [
        _rule(rule, ("allow", number), within, settings) for number, rule in enumerate(form.allow)
    ]
    _all_have_effect(rules)
    named, always = mixed(form.operators, ("operators",)), default_operators()
    operators = People(named.uids | always.uids, named.gids)
    return replace(policy, operators=operators, rules=tuple(rules))


def _rule(form: RuleForm, where: Where, within: ClientLimits, settings: Settings) -> Rule:
    if form.label:
        _of_sessions_only(form, where)
    user_ram = size(form.ram, (*where, "ram"), within.user_ram)
    user_capabilities = _least(form.capabilities, within.user_capabilities)
    client = ClientLimits(
        ram=size(form.client_ram, (*where, "client_ram"), min(within.ram, user_ram)),
        capabilities=_chosen(form.client_capabilities, min(within.capabilities, user_capabilities)),
        user_ram=user_ram,
        user_capabilities=user_capabilities,
        connections=_chosen(form.connections, within.connections),
        rom_paths=_directories(form.rom_paths, (*where, "rom_paths")),
    )
    memory = size(form.engine_memory, (*where, "engine_memory"), -1)
    session = SessionLimits(
        label=form.label,
        sessions=_chosen(form.sessions, settings.sessions_per_user),
        vcpus=form.vcpus,
        engines=_engines(form.engines, (*where, "engines")),
        priority=form.priority,
        cpus=cpus(form.cpus, (*where, "cpus")),
        engine_memory=None if memory < 0 else memory,
        engine_cpu=form.engine_cpu,
    )
    who = people(form.users, form.groups, where)
    return Rule(who, client, session, mixed(form.audit, (*where, "audit")))


def _chosen(written: int | None, default: int) -> int:
    return default if written is None else written


def _least(written: int | None, default: int) -> int:
    return default if written is None else min(written, default)


def _of_sessions_only(form: RuleForm, where: Where) -> None:
    for key in CLIENT_KEYS:
        if getattr(form, key) not in (None, []):
            why = "a rule with a label is about sessions; say this in a rule without"
            raise PolicyError(why, (*where, key))


def _engines(names: Sequence[str] | None, where: Where) -> tuple[str, ...] | None:
    for name in names or ():
        if name not in ENGINES:
            raise PolicyError(f"there is no engine {name!r}: {', '.join(ENGINES)}", where)
    return None if names is None else tuple(names)


def _directories(paths: Sequence[str], where: Where) -> tuple[Path, ...]:
    found = []
    for path in paths:
        try:
            directory = Path(path).resolve(strict=True)
        except (OSError, ValueError):
            directory = None
        if directory is None or not directory.is_dir() or not path.startswith("/"):
            raise PolicyError(f"{path!r} is no absolute path of a directory", where)
        found.append(directory)
    return tuple(found)


def _all_have_effect(rules: Sequence[Rule]) -> None:
    """A rule behind one that takes everybody is a mistake: its author thinks it counts."""
    for number, rule in enumerate(rules):
        for earlier, taker in enumerate(rules[:number]):
            if _takes_all(taker, rule):
                why = f"has no effect: rule {earlier + 1} of the file takes all that it is for"
                raise PolicyError(why, ("allow", number))


def _takes_all(taker: Rule, rule: Rule) -> bool:
    if not rule.session.label.startswith(taker.session.label):
        return False
    return _includes(taker.people, rule.people)


def _includes(all_of: People, some: People) -> bool:
    if all_of.everybody:
        return True
    return not some.everybody and some.uids <= all_of.uids and some.gids <= all_of.gids


def _line_of(text: str, where: Where) -> int:
    """Where a key stands, or the table that it would stand in; 0 if that is nowhere."""
    best, line_found = 0, 0
    place: Where = ()
    at: Where = ()
    counts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if table := re.match(r"\s*\[\[\s*([\w.-]+)\s*\]\]", line):
            counts[table[1]] = counts.get(table[1], -1) + 1
            place = (table[1], counts[table[1]])
            at = place
        elif table := re.match(r"\s*\[\s*([\w.-]+)\s*\]", line):
            place = (table[1],)
            at = place
        elif key := re.match(r"\s*([\w\"'.-]+)\s*=", line):
            at = (*place, *re.findall(r"[\w-]+", key[1]))
        else:
            continue
        common = len(at) if where[: len(at)] == at else 0
        if common > best:
            best, line_found = common, number
    return line_found
