"""What core says of all that there is, without names: two worlds are the same if it says the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from vmsession.v1.audit_pb2 import DataspaceRecord
from vmsession.v1.vm_session_pb2 import Session

from vmm_client import Connection
from vmm_client.errors import Refused


def books(core: Connection, bystander: str = "bystander") -> dict[str, object]:
    """Of an operator's connection. The exits of a session with the label `bystander` do not count."""
    totals = core.totals("uid")
    return {
        "sessions": sorted(_sessions(core, bystander)),
        "memory": sorted(_record(each) for each in core.records(alive_only=True)),
        "offers": sorted(
            (each.size, each.writable, bool(each.accepted_as)) for each in core.shares()
        ),
        "totals": (
            totals.live,
            totals.live_bytes,
            totals.held_bytes,
            totals.sessions,
            totals.engine_processes,
            totals.extra_fds,
        ),
        "charged": sorted(
            (each.group, each.ram.used, each.capabilities.used) for each in totals.groups
        ),
    }


def _sessions(core: Connection, bystander: str) -> Iterator[tuple[object, ...]]:
    for each in core.sessions():
        with suppress(Refused):  # it ended in this moment
            yield _session(core, each, bystander)


def _session(core: Connection, of: Session, bystander: str) -> tuple[object, ...]:
    vcpus = () if of.label == bystander else core.vcpus(of.name)
    return (
        of.label,
        of.engine,
        of.attachments,
        of.attached_bytes,
        (of.ram.used, of.ram.limit, of.capabilities.used, of.capabilities.limit),
        tuple((each.index, each.transport, each.exits) for each in vcpus),
    )


def _record(of: DataspaceRecord) -> tuple[object, ...]:
    mapped = (each.partition(" ")[2] for each in of.attachments)
    return of.kind, of.size, of.state, bool(of.origin), of.holders, tuple(sorted(mapped))
