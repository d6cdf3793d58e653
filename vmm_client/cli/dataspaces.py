"""`vmm dataspaces`: who holds which memory, and held it at any time before."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Final, Literal

from cyclopts import Parameter
from vmsession.v1.audit_pb2 import DataspaceKind, DataspaceRecord, DataspaceState

from vmm_client.cli.moments import Moment, clock_time, exact_time, span
from vmm_client.cli.numbers import Uid
from vmm_client.cli.output import Row, show, size
from vmm_client.connection import connect

COLUMNS: Final = (
    *("dataspace", "kind", "state", "size", "divided", "uid", "pid"),
    *("created", "lived", "mapped", "cause"),
)


def dataspaces(  # noqa: PLR0913 - one for each option
    *,
    all: Annotated[bool, Parameter(negative="")] = False,  # noqa: A002 - the option's name
    at: Moment | None = None,
    uid: Uid | None = None,
    session: str = "",
    kind: Literal["ram", "rom", "vcpu_page", "share"] | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    socket: str | None = None,
) -> None:
    """See COMMANDS in `vmm_client.cli.main`.

    Parameters
    ----------
    all
        Also what was freed, as far back as core's audit log goes.
    at
        What lived at a moment instead, as in `last tuesday`, `2026-11-17 14:00` or `3h ago`; what became
        of it since is told, too. A day is its beginning.
    uid
        Only what is charged to this user.
    session
        Only what is attached to this session now, and the pages of its vCPUs.
    kind
        Only memory of this kind.
    json
        Print a JSON list instead.
    socket
        Core's socket; by default the one of $VMSESSION_SOCKET, yours, or the system's.
    """
    alive_only = not all and at is None
    with connect(socket) as core:
        found = core.records(alive_only, uid=uid, session=session, kind=kind or "", at=at)
        show(map(_row, found), COLUMNS, as_json=json)


def _row(record: DataspaceRecord) -> Row:
    freed = record.HasField("free_time")
    return {
        "dataspace": record.name,
        "kind": _word(DataspaceKind.Name(record.kind), "DATASPACE_KIND_"),
        "state": _word(DataspaceState.Name(record.state), "DATASPACE_STATE_"),
        "size": size(record.size),
        "bytes": record.size,
        "committed": record.committed,
        "divided": size(record.proportional) if record.proportional else "",
        "proportional": record.proportional,
        "uid": record.holder.uid,
        "gid": record.holder.gid,
        "pid": record.holder.pid,
        "created": clock_time(record.create_time),
        "create_time": exact_time(record.create_time),
        "free_time": exact_time(record.free_time) if freed else None,
        "lived": span(timedelta(microseconds=record.lifetime_ns // 1000)),
        "seconds": round(record.lifetime_ns / 1e9, 3),
        "mapped": list(record.attachments),
        "mappings": record.mappings,
        "handed_out": record.handed_out,
        "origin": record.origin,
        "holders": record.holders,
        "cause": record.cause,
    }


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower().replace("_", " ")
