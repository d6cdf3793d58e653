"""`vmm audit watch`."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from typing import Annotated

from cyclopts import Parameter
from vmsession.v1.audit_pb2 import Event, WatchResponse

from vmm_client.cli.events import COLUMNS, event_row
from vmm_client.cli.numbers import Count, Revision
from vmm_client.cli.output import show_as_it_comes
from vmm_client.connection import connect


def watch(
    *,
    after: Revision | None = None,
    count: Count | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    socket: str | None = None,
) -> None:
    """See COMMANDS in `vmm_client.cli.main`.

    Parameters
    ----------
    after
        Begin after this revision; by default after the latest.
    count
        Leave after so many events; by default never.
    json
        Print each event as a line of JSON instead.
    socket
        Core's socket; by default the one of $VMSESSION_SOCKET, yours, or the system's.
    """
    with connect(socket) as core:
        begin = core.totals().revision if after is None else after
        with closing(core.watch(begin)) as told:
            rows = map(event_row, islice(_events(told), count))
            show_as_it_comes(rows, COLUMNS, as_json=json, lines=True)


def _events(told: Generator[WatchResponse, None, None]) -> Iterator[Event]:
    """The events; what was missed is said on stderr, since it is in the log."""
    for message in told:
        if message.HasField("event"):
            yield message.event
        elif message.HasField("lagged"):
            first, last = message.lagged.first, message.lagged.last
            print(
                f"vmm: events {first} to {last} came too fast\n"
                f"     `vmm audit log --after {first - 1}` tells them",
                file=sys.stderr,
            )
