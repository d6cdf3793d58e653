"""The wall clock is set, forth and back: nothing that waits heeds it, and the audit keeps its order."""

from __future__ import annotations

import itertools
import signal
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from vmsession.v1 import core_pb2, core_pb2_grpc

from core_service.audit import Query, verify_chain
from tests.faults.bystander import Bystander
from tests.faults.shim import Shim
from tests.integration.running_core import RunningCore
from tests.integration.victim import Victim
from tests.integration.waiting import eventually
from vmm_client import Connection, connect

PAGE = 4096
DAY = 86_400
MINUTE_NS = 60 * 10**9
GRACE = "0.5"
jumps = pytest.mark.parametrize("days", [1, -1], ids=["forth", "back"])


@pytest.fixture
def core(shim: Shim) -> Iterator[RunningCore]:
    """One whose clock can be set."""
    running = shim.core("--keep", "30", "--grace", GRACE)
    try:
        yield running
        if running.process.poll() is None:
            running.stop()
    finally:
        running.close()


def living(client: Connection, at: datetime) -> set[str]:
    return {each.name for each in client.records(at=at)}


@jumps
def test_leases_tickets_and_grace_go_by_real_time(core: RunningCore, shim: Shim, days: int) -> None:
    with connect(str(core.socket)) as client, Victim(core, "soft", lease="none") as victim:
        stub = core_pb2_grpc.CoreServiceStub(client.rpc.channel)
        ticket = stub.OpenFdChannel(core_pb2.OpenFdChannelRequest())
        session = client.create_session("soft")
        shim.set_clock(days * DAY)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
            channel.connect(ticket.path)
            channel.send(ticket.ticket.encode())
            assert channel.recv(100) == b"ok"
        # without a lease it ends, in real time
        eventually(lambda: client.history(victim.session).events[-1].cause == "lease ended")
        assert [each.name for each in client.sessions()] == [session.name]  # with one it does not
        session.create_vcpu()


@jumps
def test_the_audit_has_one_order_and_true_lifetimes(
    core: RunningCore, shim: Shim, days: int
) -> None:
    with connect(str(core.socket)) as client, Bystander(core.socket) as bystander:
        early, gone = client.create_ram(PAGE), client.create_ram(PAGE)
        shim.set_clock(days * DAY)
        gone.close()
        late = client.create_ram(PAGE)
        now = datetime.now(UTC) + timedelta(days=days)
        assert living(client, now) >= {early.name, late.name}
        assert gone.name not in living(client, now)
        core.restart(signal.SIGKILL)
        bystander.must_go_on()
        late.close()
        early.close()
        shim.set_clock(0)  # it is set right
        last = client.create_ram(PAGE)
        records = {each.name: each for each in client.records()}
        for ram in (early, gone, late, last):
            assert 0 < records[ram.name].lifetime_ns < MINUTE_NS
        assert last.name in living(client, datetime.now(UTC))
        assert not living(client, datetime.now(UTC)) & {early.name, gone.name, late.name}
        events = list(client.events())
        clock = [event.monotonic_ns for event in events]
        assert clock == sorted(clock)
        assert [event.revision for event in events] == list(range(1, len(events) + 1))
        steps = [b.time.seconds - a.time.seconds for a, b in itertools.pairwise(events)]
        assert max(steps) > DAY - 60  # the log shows what was done to the clock
        assert min(steps) < 60 - DAY
        bystander.leaves()
    core.stop()
    assert verify_chain(core.audit).discrepancies == []
    assert [each for each in Query(core.audit).totals() if each.created != each.ended] == []
