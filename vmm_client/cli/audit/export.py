"""`vmm audit export`."""

from __future__ import annotations

import json
import sys

from vmsession.v1.audit_pb2 import Event

from vmm_client.cli.numbers import Revision
from vmm_client.connection import connect


def export(*, after: Revision = 0, socket: str | None = None) -> None:
    """See COMMANDS in `vmm_client.cli.main`.

    Parameters
    ----------
    after
        Only events with a higher revision, as to add to an earlier export; 0 begins with the
        oldest that there is.
    socket
        Core's socket; by default the one of $VMSESSION_SOCKET, yours, or the system's.
    """
    with connect(socket) as core:
        for event in core.events(after):
            sys.stdout.write(json.dumps(_line(event)) + "\n")


def _line(event: Event) -> dict[str, int | str]:
    """The fields that are hashed, as docs/audit.md tells, and the hash."""
    actor = event.actor
    return {
        "revision": event.revision,
        "monotonic_ns": event.monotonic_ns,
        "wall_ns": event.time.ToNanoseconds(),
        "boot_id": event.boot_id,
        "kind": event.kind,
        "subject": event.subject,
        "actor": f"{actor.uid}:{actor.gid}:{actor.pid}" if event.HasField("actor") else "",
        "label": event.label,
        "cause": event.cause,
        "detail": event.detail,
        "hash": event.hash.hex(),
    }
