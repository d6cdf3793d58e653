"""What a caller of the audit asks for, as far as he may see it, in the terms of the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from google.protobuf.timestamp_pb2 import Timestamp
from vmsession.v1 import audit_pb2 as pb

from core_service.audit.query import EventFilter, RecordFilter
from core_service.refusal import invalid
from core_service.rpc.sight import sees, sees_all
from dataspace.record import DataspaceKind, EventKind

if TYPE_CHECKING:
    from core_service.client import Client

INTEGER_LIMIT: Final = (1 << 63) - 1  # SQLite's
KINDS: Final[dict[int, DataspaceKind]] = {
    pb.DATASPACE_KIND_RAM: "ram",
    pb.DATASPACE_KIND_ROM: "rom",
    pb.DATASPACE_KIND_VCPU_PAGE: "vcpu_page",
    pb.DATASPACE_KIND_SHARE: "share",
}


ROOM: Final = 512 << 10
"""Bytes of records in one message, beside one record more: that has 3.3 MiB at most, with as many
attachments as a client has capabilities, and a client takes 4 MiB."""


class NothingToSee(Exception):  # noqa: N818 - no error: the answer is empty
    """The caller asks for what is another user's only."""


def uids_seen(client: Client, asked: int | None) -> frozenset[int] | None:
    """The users to whom an answer is limited; None where it is not. Raises NothingToSee."""
    if asked is None:
        return None if sees_all(client) else client.sight.uids | {client.identity.uid}
    if not sees(client, asked):
        raise NothingToSee
    return frozenset({asked})


def kinds_of(asked: int) -> tuple[DataspaceKind, ...]:
    """The kinds that are asked for. Raises Refusal INVALID_ARGUMENT."""
    if asked == pb.DATASPACE_KIND_UNSPECIFIED:
        return tuple(KINDS.values())
    if asked not in KINDS:
        raise invalid("kind", asked, "one of DataspaceKind")
    return (KINDS[asked],)


def record_filter(client: Client, request: pb.ListRecordsRequest) -> RecordFilter:
    """For ListRecords. Raises Refusal INVALID_ARGUMENT, NothingToSee."""
    kinds = kinds_of(request.kind)
    at = moment("at", request.at) if request.HasField("at") else None
    uids = uids_seen(client, request.uid if request.HasField("uid") else None)
    return RecordFilter(kinds=kinds, uids=uids, at=at)


def event_filter(client: Client, request: pb.ListEventsRequest) -> EventFilter:
    """For ListEvents. Raises Refusal INVALID_ARGUMENT, NothingToSee."""
    if len(request.kinds) > len(EventKind):
        raise invalid("kinds", f"{len(request.kinds)} kinds", f"at most {len(EventKind)}")
    kinds = set(request.kinds)
    for kind in kinds - set(EventKind):
        raise invalid("kinds", kind, f"one of {', '.join(EventKind)}")
    return EventFilter(
        subject=request.subject,
        uids=uids_seen(client, request.uid if request.HasField("uid") else None),
        kinds=tuple(kinds),
        since=moment("since", request.since) if request.HasField("since") else None,
        until=moment("until", request.until) if request.HasField("until") else None,
    )


def revision(field: str, asked: int) -> int:
    """A revision to start from. Raises Refusal INVALID_ARGUMENT."""
    if asked > INTEGER_LIMIT:
        raise invalid(field, asked, f"at most {INTEGER_LIMIT}")
    return asked


def moment(field: str, asked: Timestamp) -> int:
    """Nanoseconds since the epoch. Raises Refusal INVALID_ARGUMENT."""
    ns = asked.seconds * 10**9 + asked.nanos
    if not 0 <= asked.nanos < 10**9 or abs(ns) > INTEGER_LIMIT:
        raise invalid(field, f"{asked.seconds} s {asked.nanos} ns", "a moment within 1678 and 2262")
    return ns


def fitting(records: Sequence[pb.DataspaceRecord]) -> int:
    """How many of these, from the first on, go into one message."""
    room = ROOM
    for number, record in enumerate(records, 1):
        room -= record.ByteSize()
        if room < 0:
            return number
    return len(records)
