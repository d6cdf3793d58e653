"""What is left of clients, by core's own word and by the kernel's."""

from __future__ import annotations

from typing import Final

from vmsession.v1 import audit_pb2

from tests.integration.lives.traces import Traces, look
from tests.integration.running_core import RunningCore, Stubs
from tests.integration.waiting import eventually

LEFT_SECONDS: Final = 20.0  # what was cut off in the midst of something has seconds to be over
NOTHING: Final = ("live", "live_bytes", "held_bytes", "sessions", "engine_processes", "extra_fds")


def core_digits(stubs: Stubs) -> str:
    """Those that all names of this core begin with."""
    request = audit_pb2.ListEventsRequest(kinds=["started"], page_size=1000)
    name: str = stubs.audit.ListEvents(request).events[-1].subject
    return name.removeprefix("cores/")


def nothing_left(core: RunningCore, stubs: Stubs, digits: str, before: Traces) -> None:
    """Wait until core and the kernel both tell that nothing is left."""

    def left() -> list[str]:
        return [*left_in_core(stubs), *left_on_host(before, look(core.process.pid, digits))]

    eventually(lambda: not left(), lambda: f"left: {left()}", LEFT_SECONDS)


def left_in_core(stubs: Stubs) -> list[str]:
    """By core's own word."""
    totals = stubs.audit.GetTotals(audit_pb2.GetTotalsRequest(group_by=audit_pb2.GROUPING_UID))
    expected = dict.fromkeys(NOTHING, 0) | {"clients": 1, "freed": totals.created}
    found = [
        f"{name} {getattr(totals, name)}, not {number}"
        for name, number in expected.items()
        if getattr(totals, name) != number
    ]
    found += [
        f"user {group.group} is charged {group.ram.used} bytes, {group.capabilities.used} capabilities"
        for group in totals.groups
        if group.ram.used or group.capabilities.used
    ]
    records = audit_pb2.ListRecordsRequest(alive_only=True)
    return found + [f"record {each.name}" for each in stubs.audit.ListRecords(records).records]


def left_on_host(before: Traces, now: Traces) -> list[str]:
    """By the kernel's."""
    found = list(now.memory)
    if now.fds != before.fds:
        found.append(f"fds {now.fds}, not {before.fds}")
    if now.threads > before.threads:
        found.append(f"{now.threads} threads, not {before.threads}")
    if now.children != before.children:
        found.append(f"{now.children} children, not {before.children}")
    return found
