"""What events add up to: which objects there are and were, and how many.

The writer keeps its tables by this fold and verification computes it again, so both mean the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

from core_service.audit.chain import Row
from dataspace.record import EventKind

MEMORY: Final = frozenset({"ram", "rom", "vcpu_page", "share"})
NOBODY: Final = -1
"""The user of what is core's own."""

_BIRTHS: Final = {EventKind.CREATED, EventKind.OPENED, EventKind.STARTED, EventKind.SHARED}
_ENDS: Final = {
    EventKind.FREED,
    EventKind.RELEASED,
    EventKind.CLOSED,
    EventKind.LOST,
    EventKind.STOPPED,
    EventKind.REVOKED,
}
ENDINGS: Final = frozenset({*_ENDS, EventKind.DETACHED, EventKind.HELD, EventKind.SEALED})
"""What takes away, and cannot be undone: their number is bounded by what lives."""

_NO_MEMORY: Final = {
    EventKind.OPENED,
    EventKind.CLOSED,
    EventKind.UPGRADED,
    EventKind.ADOPTED,
    EventKind.POLICY,
    EventKind.STARTED,
    EventKind.STOPPED,
    EventKind.SHARED,
    EventKind.ACCEPTED,
    EventKind.REVOKED,
}


@dataclass(slots=True)
class Life:
    """One object, from its first event to its last.

    `revision` is that of the event it began with. `kind` is that of a dataspace, `offer` for an
    offer to share one, or what the first event tells. A vCPU and its page share a name: they differ
    by `kind`. `cause` is why it ended, or why its owner freed it. What is None has not happened.
    """

    revision: int
    name: str
    kind: str
    size: int
    holder: str
    uid: int
    label: str
    origin: str
    created_wall_ns: int
    created_monotonic_ns: int
    created_boot_id: str
    held_wall_ns: int | None = None
    ended_revision: int | None = None
    ended_wall_ns: int | None = None
    ended_monotonic_ns: int | None = None
    ended_boot_id: str | None = None
    cause: str = ""
    mappings: int = 0
    handed_out: int = 0


@dataclass(slots=True)
class Sum:
    """How many objects of a kind a user ever had, and bytes of them."""

    uid: int
    kind: str
    created: int = 0
    created_bytes: int = 0
    ended: int = 0
    ended_bytes: int = 0


class Outcome(NamedTuple):
    """What one event did: the object and the sum it changed, and the users whom it concerns."""

    life: Life | None
    total: Sum | None
    uids: frozenset[int]


class Fold:
    """The objects that live, and the sums, after the events so far."""

    def __init__(self, living: Iterable[Life] = (), sums: Iterable[Sum] = ()) -> None:
        self._living = {(life.name, life.kind in MEMORY): life for life in living}
        self._sums = {(total.uid, total.kind): total for total in sums}

    @property
    def living(self) -> list[Life]:
        """What has no end, in the order of creation."""
        return sorted(self._living.values(), key=lambda life: life.revision)

    @property
    def sums(self) -> list[Sum]:
        """All sums."""
        return list(self._sums.values())

    def apply(self, row: Row) -> Outcome:
        """Take in the next event."""
        kind, detail = EventKind(row.kind), json.loads(row.detail)
        key = _key(row, kind, detail)
        if kind in _BIRTHS:
            self._living[key] = _born(row, detail)
        life = self._living.get(key)
        total = None
        if life is not None:
            total = self._sums.setdefault((life.uid, life.kind), Sum(life.uid, life.kind))
            self._count(kind, life, total, row)
        uids = {_uid(row.actor), _uid(_holder(detail)), life.uid if life else NOBODY}
        if isinstance(receiver := detail.get("uid"), int):  # whom an offer is made to
            uids.add(receiver)
        return Outcome(life, total, frozenset(uids - {NOBODY}))

    def _count(self, kind: EventKind, life: Life, total: Sum, row: Row) -> None:
        life.mappings += kind is EventKind.ATTACHED
        life.handed_out += kind is EventKind.HANDED_OUT
        if kind in _BIRTHS:
            total.created += 1
            total.created_bytes += life.size
        elif kind is EventKind.HELD:
            life.held_wall_ns = row.wall_ns
            life.cause = row.cause
        elif kind in _ENDS:
            life.ended_revision = row.revision
            life.ended_wall_ns = row.wall_ns
            life.ended_monotonic_ns = row.monotonic_ns
            life.ended_boot_id = row.boot_id
            life.cause = life.cause or row.cause
            total.ended += 1
            total.ended_bytes += life.size
            del self._living[life.name, life.kind in MEMORY]


def _key(row: Row, kind: EventKind, detail: dict[str, Any]) -> tuple[str, bool]:
    if kind is EventKind.LOST:
        return row.subject, detail.get("kind") in MEMORY
    return row.subject, kind not in _NO_MEMORY


def _born(row: Row, detail: dict[str, Any]) -> Life:
    holder = _holder(detail) or row.actor
    size = detail.get("size", 0)
    return Life(
        revision=row.revision,
        name=row.subject,
        kind="offer" if row.kind == EventKind.SHARED else str(detail.get("kind", "")),
        size=size if isinstance(size, int) else 0,
        holder=holder,
        uid=_uid(holder),
        label=row.label,
        origin=str(detail.get("origin", "")),
        created_wall_ns=row.wall_ns,
        created_monotonic_ns=row.monotonic_ns,
        created_boot_id=row.boot_id,
    )


def _holder(detail: dict[str, Any]) -> str:
    return str(detail.get("holder", ""))


@lru_cache(1024)
def _uid(holder: str) -> int:
    with suppress(ValueError):
        return int(holder.partition(":")[0])
    return NOBODY
