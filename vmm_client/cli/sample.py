"""What `vmm top` shows: one look at core, and the rates between two."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from vmsession.v1.audit_pb2 import Event, GetTotalsResponse
from vmsession.v1.vm_session_pb2 import Session, Vcpu

from vmm_client.cli.output import Row
from vmm_client.connection import Connection
from vmm_client.errors import Refused

EVENTS: Final = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """One look; `monotonic_ns` is when it began."""

    monotonic_ns: int
    totals: GetTotalsResponse
    sessions: list[Session]
    vcpus: list[Vcpu]
    events: list[Event]


def take(core: Connection) -> Sample:
    """Look. Sessions that end meanwhile have no vCPUs."""
    began = time.monotonic_ns()
    totals = core.totals()
    sessions = list(core.sessions())
    vcpus: list[Vcpu] = []
    for session in sessions:
        with suppress(Refused):
            vcpus += core.vcpus(session.name)
    events: list[Event] = []
    with suppress(Refused):  # retention removed some of the latest
        events = list(core.events(max(0, totals.revision - EVENTS)))[-EVENTS:]
    return Sample(began, totals, sessions, vcpus, events)


def vcpu_rows(before: Sample, after: Sample) -> list[Row]:
    """Every vCPU of the later sample, with exits a second and the share of a CPU that its thread took
    since the earlier; None where it was not there, or /proc does not tell."""
    earlier = {vcpu.name: vcpu for vcpu in before.vcpus}
    elapsed = after.monotonic_ns - before.monotonic_ns
    return [_vcpu_row(earlier.get(vcpu.name), vcpu, elapsed) for vcpu in after.vcpus]


def _vcpu_row(before: Vcpu | None, after: Vcpu, elapsed_ns: int) -> Row:
    told = after.HasField("run_time_ns")
    row: Row = {
        "vcpu": after.name,
        "exits": after.exits,
        "exits_per_s": None,
        "cpu_percent": None,
        "run_time_s": round(after.run_time_ns / 1e9, 2) if told else None,
    }
    if before is not None and elapsed_ns > 0:
        exits = (after.exits - before.exits) % (1 << 32)
        row["exits_per_s"] = round(exits * 1e9 / elapsed_ns, 1)
        if told and before.HasField("run_time_ns"):
            row["cpu_percent"] = round(
                100 * (after.run_time_ns - before.run_time_ns) / elapsed_ns, 1
            )
    return row
