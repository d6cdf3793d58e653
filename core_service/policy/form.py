"""The form of the policy file: its tables and keys, and what each may hold."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

import msgspec

from core_service.policy.errors import PolicyError, Where

UNITS: Final = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
SIZE_LIMIT: Final = 1 << 52

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
Percent = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
Priority = Annotated[int, msgspec.Meta(ge=0, le=19)]
Size = int | str
User = int | str


class LimitsForm(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`[limits]`: of core as a whole."""

    ram: Size | None = None
    capabilities: Count | None = None
    sessions: Count | None = None


class RuleForm(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`[[allow]]`: whom it is for, and what they may have; what it does not say stays as it is."""

    users: list[User] | None = None
    groups: list[User] | None = None
    label: str = ""
    sessions: Count | None = None
    vcpus: Count | None = None
    ram: Size | None = None
    capabilities: Count | None = None
    client_ram: Size | None = None
    client_capabilities: Count | None = None
    connections: Count | None = None
    engines: list[str] | None = None
    rom_paths: list[str] = []
    audit: list[User] = []
    priority: Priority = 0
    cpus: str = ""
    engine_memory: Size | None = None
    engine_cpu: Percent | None = None


class PolicyForm(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The whole file."""

    operators: list[User] = []
    limits: LimitsForm = LimitsForm()
    allow: list[RuleForm] = []


def formed(document: dict[str, Any]) -> PolicyForm:
    """The document in its form. Raises PolicyError."""
    try:
        return msgspec.convert(document, PolicyForm)
    except msgspec.ValidationError as error:
        why, _, path = str(error).partition(" - at ")
        where = _parts(path.strip("`"))
        if unknown := re.search(r"unknown field `(.*)`", why):
            where = (*where, unknown[1])
            why = "there is no such key"
        raise PolicyError(why, where) from error


def size(written: Size | None, where: Where, default: int) -> int:
    """Bytes, of a number or a text as "4 GiB". Raises PolicyError."""
    if written is None:
        return default
    found = re.fullmatch(r"(\d{1,16})\s*([KMGT]iB)?", str(written), re.ASCII)
    amount = int(found[1]) * UNITS[found[2] or ""] if found else -1
    if not 0 <= amount <= SIZE_LIMIT:
        units = ", ".join(unit for unit in UNITS if unit)
        raise PolicyError(
            f"{written!r} is no size: bytes, or a whole number with {units}, 4 PiB at most", where
        )
    return amount


def cpus(written: str, where: Where) -> frozenset[int]:
    """CPU numbers, of a text as "0-3,8"; none for an empty one. Raises PolicyError."""
    chosen: set[int] = set()
    for part in written.split(",") if written else ():
        found = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part, re.ASCII)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if last < first:
            raise PolicyError(f"{written!r} is no list of CPUs, as in '0-3,8'", where)
        chosen.update(range(first, last + 1))
    return frozenset(chosen)


def _parts(path: str) -> Where:
    """The keys of msgspec's path, as in `$.allow[0].users[...]`."""
    found = re.findall(r"\.(\w+)|\[(\d+)\]", path)
    return tuple(name or int(number) for name, number in found)
