"""`vmm top`: sessions, vCPUs, memory and events, live."""

from __future__ import annotations

import json as encoder
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from vmm_client.cli import events, sessions
from vmm_client.cli.numbers import Seconds
from vmm_client.cli.output import Row, show, size, table
from vmm_client.cli.sample import Sample, take, vcpu_rows
from vmm_client.connection import Connection, connect
from vmm_client.console import unwound_by_signals

if TYPE_CHECKING:
    from rich.console import Group

KEYS_BYTES: Final = 64
VCPU_COLUMNS: Final = ("vcpu", "exits", "exits_per_s", "cpu_percent", "run_time_s")
EVENT_COLUMNS: Final = ("revision", "when", "object", "event", "cause", "about")


def top(
    *,
    interval: Seconds = 1.0,
    once: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
    socket: str | None = None,
) -> None:
    """See COMMANDS in `vmm_client.cli.main`.

    Parameters
    ----------
    interval
        Seconds between two looks, 0.1 at least: what rates are over.
    once
        Print one look and leave, as without a terminal.
    json
        Print one look as a JSON object, and leave.
    socket
        Core's socket; by default the one of $VMSESSION_SOCKET, yours, or the system's.
    """
    with connect(socket) as core:
        if once or json or not (sys.stdin.isatty() and sys.stdout.isatty()):
            before = take(core)
            time.sleep(interval)
            _print(before, take(core), as_json=json)
        else:
            _live(core, interval)


def _print(before: Sample, after: Sample, *, as_json: bool) -> None:
    vcpus = vcpu_rows(before, after)
    rows = [sessions.session_row(session) for session in after.sessions]
    recent = [events.event_row(event) for event in after.events]
    if as_json:
        told = {"memory": _memory(after), "sessions": rows, "vcpus": vcpus, "events": recent}
        print(encoder.dumps(told, indent=2))
        return
    print(_headline(after))
    show(rows, sessions.COLUMNS, as_json=False)
    show(vcpus, VCPU_COLUMNS, as_json=False)
    show(recent, EVENT_COLUMNS, as_json=False)


def _live(core: Connection, interval: float) -> None:
    from rich.live import Live  # noqa: PLC0415 - only a terminal pays for it

    after = take(core)
    with (
        unwound_by_signals(),
        _keys(),
        Live(_view(after, after), screen=True, auto_refresh=False) as live,
    ):
        while not _left(interval):
            before, after = after, take(core)
            live.update(_view(before, after), refresh=True)


def _view(before: Sample, after: Sample) -> Group:
    from rich.console import Group  # noqa: PLC0415

    rows = [sessions.session_row(session) for session in after.sessions]
    recent = [events.event_row(event) for event in after.events]
    return Group(
        f"{_headline(after)} (q leaves)",
        table(rows, sessions.COLUMNS),
        table(vcpu_rows(before, after), VCPU_COLUMNS),
        table(recent, EVENT_COLUMNS),
    )


def _memory(sample: Sample) -> Row:
    names = ("live", "live_bytes", "held_bytes", "created", "freed", "revision")
    return {name: getattr(sample.totals, name) for name in names}


def _headline(sample: Sample) -> str:
    totals = sample.totals
    return (
        f"sessions: {len(sample.sessions)}, vCPUs: {len(sample.vcpus)}, "
        f"dataspaces: {totals.live} of {size(totals.live_bytes)}, "
        f"freed but held: {size(totals.held_bytes)}, revision: {totals.revision}"
    )


@contextmanager
def _keys() -> Iterator[None]:
    """The terminal gives keys as they are pressed, and is as it was afterwards."""
    descriptor = sys.stdin.fileno()
    saved = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, saved)


def _left(seconds: float) -> bool:
    """Wait so long; whether somebody pressed q, or hung up, meanwhile."""
    until = time.monotonic() + seconds
    while (rest := until - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], rest)[0]:
            keys = os.read(sys.stdin.fileno(), KEYS_BYTES)
            if not keys or b"q" in keys.lower():
                return True
    return False
