"""`vmm audit log`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from vmm_client.cli.events import COLUMNS, event_row
from vmm_client.cli.moments import Moment
from vmm_client.cli.numbers import Revision, Uid
from vmm_client.cli.output import show_as_it_comes
from vmm_client.connection import connect


def log(  # noqa: PLR0913 - one for each option
    *,
    after: Revision = 0,
    since: Moment | None = None,
    until: Moment | None = None,
    subject: str = "",
    uid: Uid | None = None,
    kind: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    json: Annotated[bool, Parameter(negative="")] = False,
    socket: str | None = None,
) -> None:
    """See COMMANDS in `vmm_client.cli.main`.

    Parameters
    ----------
    after
        Only events with a higher revision; 0 begins with the oldest that there is.
    since
        Only those at or after this moment.
    until
        Only those before this moment.
    subject
        Only those of this object, as in `sessions/7k2m`.
    uid
        Only those that concern this user's processes.
    kind
        Only those of this kind, as in `freed`; may be given more than once.
    json
        Print a JSON list instead.
    socket
        Core's socket; by default the one of $VMSESSION_SOCKET, yours, or the system's.
    """
    with connect(socket) as core:
        events = core.events(after, subject=subject, uid=uid, kinds=kind, since=since, until=until)
        show_as_it_comes(map(event_row, events), COLUMNS, as_json=json)
