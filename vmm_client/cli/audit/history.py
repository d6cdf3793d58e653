"""`vmm audit history`."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from vmm_client.cli.events import COLUMNS, event_row
from vmm_client.cli.output import show_as_it_comes
from vmm_client.connection import connect


def history(
    name: str,
    *,
    json: Annotated[bool, Parameter(negative="")] = False,
    socket: str | None = None,
) -> None:
    """See COMMANDS in `vmm_client.cli.main`.

    Parameters
    ----------
    name
        The object, as in `dataspaces/7k2m`, `sessions/7k2m` or `sessions/7k2m/vcpus/0`.
    json
        Print a JSON list instead.
    socket
        Core's socket; by default the one of $VMSESSION_SOCKET, yours, or the system's.
    """
    with connect(socket) as core:
        found = core.history(name)
    if found.compacted:
        print(f"vmm: the beginning of {name} was removed by retention", file=sys.stderr)
    show_as_it_comes(map(event_row, found.events), COLUMNS, as_json=json)
