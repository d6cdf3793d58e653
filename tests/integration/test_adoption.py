"""A core that ends leaves its virtual machines to the next one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.engines import on_every_engine
from tests.integration.running_core import RunningCore
from tests.integration.waiting import eventually
from vmm_client import Connection, Reason, Segment, connect

PAGE = 4096
COUNTER = bytes.fromhex("ff060080 e6e9 ebf8")  # again: inc word [0x8000]; out 0xe9, al; jmp again
both_ways = pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])


@pytest.fixture
def kept() -> Iterator[RunningCore]:
    """A core with a keeper; in the end nothing of either is left."""
    running = RunningCore("--keep", "30")
    try:
        yield running
        keeper = keeper_of(running)
        running.stop()
        eventually(lambda: not Path(f"/proc/{keeper}").exists())
        assert not (running.directory / "keeper.sock").exists()
    finally:
        running.close()


def keeper_of(core: RunningCore) -> int:
    """The keeper's process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if (
                b"core_service.keeper" in words
                and os.fsencode(core.directory / "keeper.sock") in words
            ):
                return int(entry.name)
    raise AssertionError("there is no keeper")


def books(connection: Connection) -> dict[str, object]:
    """What core says of everything that there is."""
    totals = connection.totals("client")
    return {
        "sessions": [
            (each.name, each.label, each.engine, each.engine_pid, each.vcpus, each.attachments)
            for each in connection.sessions()
        ],
        "quota": [
            (each.ram.used, each.ram.limit, each.capabilities.used)
            for each in connection.sessions()
        ],
        "records": [
            (each.name, each.kind, each.size, each.state, each.create_time.seconds)
            for each in connection.records(alive_only=True)
        ],
        "totals": [
            totals.live,
            totals.live_bytes,
            totals.held_bytes,
            totals.sessions,
            totals.extra_fds,
        ],
        "groups": [(each.ram.used, each.capabilities.used) for each in totals.groups],
    }


@both_ways
@on_every_engine
def test_a_guest_goes_on_while_core_is_replaced(
    kept: RunningCore, engine: str, how: signal.Signals
) -> None:
    with connect(str(kept.socket)) as connection:
        low, other = connection.create_ram(PAGE), connection.create_ram(16 * PAGE)
        counter = connection.create_ram(PAGE)
        session = connection.create_session(engine, label="goes on")
        session.attach(low, 0)
        session.attach(counter, 0x8000)
        session.attach(other, 0x10000)
        session.detach(0x12000, PAGE)
        low.write(0, COUNTER)
        vcpu = session.create_vcpu()
        vcpu.run()
        assert vcpu.wait().reason is Reason.STARTUP  # type: ignore[union-attr]
        vcpu.registers.update({"cs": Segment(0, 0x9B, 0xFFFF, 0), "rip": 0})

        def serve(exits: int) -> None:
            for _ in range(exits):
                vcpu.run()
                exit_ = vcpu.wait()
                assert exit_
                assert exit_.reason is Reason.PORT

        serve(100)
        before = books(connection)
        for restarts in range(1, 4):
            kept.process.send_signal(how)
            kept.process.wait(20)
            serve(100)  # without any core
            kept.restart(signal.SIGCONT)
            serve(100)
            assert int.from_bytes(counter.read(0, 2), "little") == 100 + restarts * 200
        with connect(str(kept.socket)) as again:
            seen = books(again)
        assert seen["sessions"] == before["sessions"]
        assert seen["records"] == before["records"]
        assert seen["totals"] == before["totals"]
        kept.must_agree()
        session.close()
