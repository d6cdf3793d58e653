"""How an event is written down, and how each is chained to the one before."""

from __future__ import annotations

import hashlib
import json
from typing import Final, NamedTuple

from dataspace.record import Event, EventKind

GENESIS: Final = bytes(32)
"""The hash before the first event."""

_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


class Row(NamedTuple):
    """An event as the store keeps it, column by column; `detail` is a JSON object, sorted, no spaces."""

    revision: int
    monotonic_ns: int
    wall_ns: int
    boot_id: str
    kind: str
    subject: str
    actor: str
    label: str
    cause: str
    detail: str


def row_of(event: Event) -> Row:
    """Write an event down. Text that is not Unicode (lone surrogates) is escaped: there must be no event
    that cannot be stored."""
    return Row(
        event.revision,
        event.monotonic_ns,
        event.wall_ns,
        event.boot_id,
        event.kind.value,
        _text(event.subject),
        _text(event.actor),
        _text(event.label),
        _text(event.cause),
        _canonical(dict(event.detail)),
    )


def event_of(row: Row) -> Event:
    """Read it again."""
    return Event(
        revision=row.revision,
        monotonic_ns=row.monotonic_ns,
        wall_ns=row.wall_ns,
        kind=EventKind(row.kind),
        subject=row.subject,
        actor=row.actor,
        cause=row.cause,
        detail=json.loads(row.detail),
        label=row.label,
        boot_id=row.boot_id,
    )


def chained(before: bytes, row: Row) -> bytes:
    """SHA-256 over the hash before and the canonical JSON of the row: an object of its columns by name,
    `detail` a string in it, keys sorted, no spaces, ASCII with escapes."""
    return hashlib.sha256(before + _canonical(row._asdict()).encode("ascii")).digest()


def _text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
