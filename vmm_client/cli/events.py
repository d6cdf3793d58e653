"""Events of the audit log as rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from vmsession.v1.audit_pb2 import Event

from vmm_client.cli.moments import clock_time, exact_time
from vmm_client.cli.output import Cell, Row, size

COLUMNS: Final = ("revision", "when", "object", "event", "uid", "pid", "cause", "about")
BYTES: Final = frozenset({"size", "ram"})
ADDRESSES: Final = frozenset({"gpa", "offset"})


def event_row(event: Event) -> Row:
    """All of an event; `when` and `about` are for people, `time` and `detail` exact."""
    detail: dict[str, Cell] = json.loads(event.detail or "{}")
    by_somebody = event.HasField("actor")
    return {
        "revision": event.revision,
        "when": clock_time(event.time),
        "time": exact_time(event.time),
        "monotonic_ns": event.monotonic_ns,
        "boot_id": event.boot_id,
        "object": event.subject,
        "event": event.kind,
        "uid": event.actor.uid if by_somebody else None,
        "gid": event.actor.gid if by_somebody else None,
        "pid": event.actor.pid if by_somebody else None,
        "label": event.label,
        "cause": event.cause,
        "about": about(event.label, detail),
        "detail": detail,
        "hash": event.hash.hex(),
    }


def about(label: str, detail: Mapping[str, Cell]) -> str:
    """What else there is to say, on one line."""
    told = [f"label {label}"] if label else []
    return ", ".join([*told, *(f"{key} {_value(key, value)}" for key, value in detail.items())])


def _value(key: str, value: Cell) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and key in BYTES:
        return size(value)
    if isinstance(value, int) and key in ADDRESSES:
        return f"{value:#x}"
    return str(value)
