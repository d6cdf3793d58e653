"""`vmm health`."""

from __future__ import annotations

from typing import Annotated, Final

from cyclopts import Parameter

from vmm_client.cli.output import show
from vmm_client.health import WHOLE, serving

COLUMNS: Final = ("service", "serves")


def health(
    *,
    json: Annotated[bool, Parameter(negative="")] = False,
    socket: str | None = None,
) -> int:
    """See COMMANDS in `vmm_client.cli.main`.

    Parameters
    ----------
    json
        Print a JSON list instead.
    socket
        Core's socket; by default the one of $VMSESSION_SOCKET, yours, or the system's.
    """
    told = serving(socket)
    show(
        ({"service": name, "serves": serves} for name, serves in told.items()),
        COLUMNS,
        as_json=json,
    )
    return 0 if told[WHOLE] else 1
