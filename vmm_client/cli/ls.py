"""`vmm ls`."""

from __future__ import annotations

from datetime import UTC
from typing import Annotated

from cyclopts import Parameter
from vmsession.v1.vm_session_pb2 import Session

from vmm_client.cli.output import Row, show, size
from vmm_client.connection import connect

COLUMNS = ("session", "label", "engine", "vcpus", "memory", "uid", "pid", "since")


def ls(
    *,
    json: Annotated[bool, Parameter(negative="")] = False,
    socket: str | None = None,
) -> None:
    """See COMMANDS in `vmm_client.cli.main`.

    Parameters
    ----------
    json
        Print a JSON list instead.
    socket
        Core's socket; by default the one of $VMSESSION_SOCKET, yours, or the system's.
    """
    with connect(socket) as core:
        rows = [_row(session) for session in core.sessions()]
    show(rows, COLUMNS, as_json=json)


def _row(session: Session) -> Row:
    return {
        "session": session.name,
        "label": session.label,
        "engine": session.engine,
        "vcpus": session.vcpus,
        "memory": size(session.attached_bytes),
        "attached_bytes": session.attached_bytes,
        "attachments": session.attachments,
        "uid": session.client.uid,
        "pid": session.client.pid,
        "engine_pid": session.engine_pid,
        "since": session.create_time.ToDatetime(UTC).isoformat(sep=" ", timespec="seconds"),
    }
