"""`vmm sessions`."""

from __future__ import annotations

from typing import Annotated, Final

from cyclopts import Parameter
from vmsession.v1.vm_session_pb2 import Session

from vmm_client.cli.moments import age, exact_time
from vmm_client.cli.output import Row, show, size
from vmm_client.connection import connect

COLUMNS: Final = ("session", "label", "engine", "vcpus", "memory", "uid", "pid", "age")


def sessions(
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
        rows = [session_row(session) for session in core.sessions()]
    show(rows, COLUMNS, as_json=json)


def session_row(session: Session) -> Row:
    """All of a session; `memory` and `age` are for people."""
    return {
        "session": session.name,
        "label": session.label,
        "engine": session.engine,
        "vcpus": session.vcpus,
        "memory": size(session.attached_bytes),
        "attached_bytes": session.attached_bytes,
        "attachments": session.attachments,
        "uid": session.client.uid,
        "gid": session.client.gid,
        "pid": session.client.pid,
        "engine_pid": session.engine_pid,
        "priority": session.priority,
        "affinity": list(session.affinity),
        "created": exact_time(session.create_time),
        "age": age(session.create_time),
    }
