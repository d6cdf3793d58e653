"""`vmm audit verify`."""

from __future__ import annotations

import json as encoder
from typing import Annotated, Final

from cyclopts import Parameter

from vmm_client.cli.output import Row, show, tell
from vmm_client.connection import connect

COLUMNS: Final = ("check", "object", "message")
COUNTS: Final = ("events", "mappings", "descriptors", "accounts")


def verify(
    *,
    whole_chain: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
    socket: str | None = None,
) -> int:
    """See COMMANDS in `vmm_client.cli.main`.

    Parameters
    ----------
    whole_chain
        Check the log from its beginning, not only what was added since the last verification.
    json
        Print one JSON object instead.
    socket
        Core's socket; by default the one of $VMSESSION_SOCKET, yours, or the system's.
    """
    with connect(socket) as core:
        found = core.verify(whole_chain=whole_chain)
    rows: list[Row] = [
        {"check": one.check, "object": one.subject, "message": one.message}
        for one in found.discrepancies
    ]
    checked = {name: getattr(found, f"{name}_checked") for name in COUNTS}
    if json:
        told = {"discrepancies": rows, "revision": found.revision, "checked": checked}
        print(encoder.dumps(told, indent=2))
        return int(bool(rows))
    if rows:
        show(rows, COLUMNS, as_json=False)
    verdict = f"{len(rows)} found that does not agree" if rows else "everything agrees"
    counts = ", ".join(f"{count} {name}" for name, count in checked.items())
    tell([f"{verdict} at revision {found.revision}; compared: {counts}"])
    return int(bool(rows))
