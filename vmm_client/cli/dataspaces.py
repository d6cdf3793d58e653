"""`vmm dataspaces`: the audit records."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from vmsession.v1.audit_pb2 import DataspaceKind, DataspaceRecord, DataspaceState

from vmm_client.cli.output import Row, show, size
from vmm_client.connection import connect

COLUMNS = (
    *("dataspace", "kind", "state", "size", "uid", "pid"),
    *("seconds", "mappings", "mapped", "cause"),
)


def dataspaces(
    *,
    all: Annotated[bool, Parameter(negative="")] = False,  # noqa: A002 - the option's name
    json: Annotated[bool, Parameter(negative="")] = False,
    socket: str | None = None,
) -> None:
    """See COMMANDS in `vmm_client.cli.main`.

    Parameters
    ----------
    all
        Also what was freed, as far back as core remembers.
    json
        Print a JSON list instead.
    socket
        Core's socket; by default the one of $VMSESSION_SOCKET, yours, or the system's.
    """
    with connect(socket) as core:
        rows = [_row(record) for record in core.records(alive_only=not all)]
    show(rows, COLUMNS, as_json=json)


def _row(record: DataspaceRecord) -> Row:
    return {
        "dataspace": record.name,
        "kind": _word(DataspaceKind.Name(record.kind), "DATASPACE_KIND_"),
        "state": _word(DataspaceState.Name(record.state), "DATASPACE_STATE_"),
        "size": size(record.size),
        "bytes": record.size,
        "uid": record.holder.uid,
        "pid": record.holder.pid,
        "seconds": round(record.lifetime_ns / 1e9, 3),
        "mapped": list(record.attachments),
        "mappings": record.mappings,
        "handed_out": record.handed_out,
        "cause": record.cause,
    }


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower().replace("_", " ")
