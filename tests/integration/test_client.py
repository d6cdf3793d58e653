"""The client library against a real core and real engines."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from examples.tiny_vmm import main as tiny_vmm
from tests.guests.assemble import assemble
from tests.integration.engines import on_every_engine
from tests.integration.running_core import RunningCore, Stubs
from vmm_client import Connection, Injection, Ram, Reason, Segment, Session, Vcpu, connect, serve
from vmm_client.errors import Closed, MidInstruction, NotAttached, Refused, SessionEnded

RAM_SIZE = 0x10000
CODE = Segment(0, 0x9B, 0xFFFF, 0)
NOTICED_SECONDS = 5.0  # the promise is about one; this machine is shared

ASK_AND_TELL = "in al, 0x60; inc al; out 0x61, al; hlt"
ENDLESS = "again: jmp again"


@pytest.fixture
def connection(core: RunningCore, stubs: Stubs) -> Iterator[Connection]:
    """A connection; `stubs` proves afterwards that nothing is left."""
    with connect(str(core.socket)) as opened:
        yield opened


@contextmanager
def guest(connection: Connection, engine: str, source: str) -> Iterator[tuple[Session, Ram, Vcpu]]:
    """Real-mode code at 0:0 in 64 KiB of memory; the vCPU stands at STARTUP, ready to enter it."""
    with connection.create_session(engine) as session, connection.create_ram(RAM_SIZE) as ram:
        session.attach(ram, gpa=0)
        session.memory.write(0, assemble(source.replace("; ", "\n"), 16))
        vcpu = session.create_vcpu()
        enter(vcpu)
        yield session, ram, vcpu


def enter(vcpu: Vcpu, rip: int = 0) -> None:
    vcpu.run()
    vcpu.wait()
    vcpu.registers.cs = CODE
    vcpu.registers.rip = rip


@on_every_engine
def test_another_process_sees_exits_and_run_time(
    core: RunningCore, connection: Connection, engine: str
) -> None:
    with (
        connect(str(core.socket)) as other,
        guest(connection, engine, "mov cx, 0xffff; again: loop again; hlt") as (session, _, vcpu),
    ):
        (before,) = other.vcpus(session.name)
        vcpu.run()
        vcpu.wait()
        (after,) = other.vcpus(session.name)
        assert (before.name, before.exits, after.exits) == (vcpu.name, 1, 2)
        assert 0 < before.run_time_ns < after.run_time_ns < time.monotonic_ns()


@on_every_engine
def test_a_guest_asks_and_tells(connection: Connection, engine: str) -> None:
    with guest(connection, engine, ASK_AND_TELL) as (_, _, vcpu):
        seen = []
        for exit_ in vcpu.exits():
            seen.append((exit_.reason, exit_.address, exit_.is_read, exit_.size, exit_.value))
            if exit_.is_read:
                exit_.reply(41)
            if exit_.reason is Reason.HLT:
                break
        assert seen[0][:4] == (Reason.PORT, 0x60, True, 1)
        assert seen[1] == (Reason.PORT, 0x61, False, 1, 42)
        assert vcpu.exit.ip == 6


@on_every_engine
def test_registers_come_when_they_are_asked_for(connection: Connection, engine: str) -> None:
    with guest(connection, engine, "mov ebx, 7; out 1, al; out 2, al; hlt") as (_, _, vcpu):
        exits = vcpu.exits(wanted=["rbx"])
        out = next(exits)
        with pytest.raises(MidInstruction):
            vcpu.fetch("rbx")
        out.complete()
        assert next(exits).reason is Reason.COMPLETED
        assert vcpu.registers.rbx == 7
        assert "rsp" not in vcpu.registers
        assert vcpu.fetch("rsp", "cs").cs.selector == 0
        assert next(exits).address == 2
        assert next(exits).reason is Reason.HLT
        assert vcpu.registers.rbx == 7


@on_every_engine
def test_an_interrupt_enters_when_the_guest_can_take_it(
    connection: Connection, engine: str
) -> None:
    source = (
        "mov word ptr [0x80], offset handler; mov word ptr [0x82], 0; mov sp, 0x8000; sti; "
        + ("hlt; out 1, al; cli; out 2, al; hlt; handler: out 3, al; iret")
    )
    with guest(connection, engine, source) as (_, _, vcpu):
        exits = vcpu.exits()
        halted = next(exits)
        assert (halted.reason, halted.interrupts_enabled) == (Reason.HLT, True)
        vcpu.inject(0x20)
        entered = next(exits)
        assert (entered.address, entered.injection) == (3, Injection.TAKEN)
        assert [next(exits).address, next(exits).address] == [1, 2]
        vcpu.inject(0x20)
        ended = next(exits)
        assert (ended.reason, ended.injection) == (Reason.HLT, Injection.NOT_TAKEN)
        assert not ended.interrupts_enabled


@on_every_engine
def test_code_that_the_vmm_writes_is_what_runs(connection: Connection, engine: str) -> None:
    with guest(connection, engine, "again: mov al, 1; out 1, al; jmp again") as (_, ram, vcpu):
        exits = vcpu.exits()
        values = []
        for exit_, value in zip(exits, range(2, 30), strict=False):
            values.append(exit_.value)
            ram.write(1, bytes([value]))
        assert values == list(range(1, 29))


@on_every_engine
def test_a_guest_that_never_exits_is_paused_from_another_thread(
    connection: Connection, engine: str
) -> None:
    with guest(connection, engine, ENDLESS) as (_, _, vcpu):
        threading.Timer(0.05, vcpu.pause).start()
        exits = vcpu.exits(wanted=["rip"])
        assert next(exits).reason is Reason.PAUSED
        assert vcpu.registers.rip == 0
        assert vcpu.pauses_acknowledged == 1


@on_every_engine
def test_one_thread_serves_the_vcpus_of_two_sessions(connection: Connection, engine: str) -> None:
    with (
        guest(connection, engine, "again: mov al, 1; out 1, al; jmp again") as (_, _, first),
        guest(connection, engine, "again: mov al, 2; out 2, al; jmp again") as (_, _, second),
    ):
        seen: dict[Vcpu, set[tuple[int, int]]] = {first: set(), second: set()}
        counts = {first: 0, second: 0}
        for vcpu, exit_ in serve([first, second]):
            seen[vcpu].add((exit_.address, exit_.value))
            counts[vcpu] += 1
            if min(counts.values()) >= 50:
                break
        assert list(seen.values()) == [{(1, 1)}, {(2, 2)}]


@on_every_engine
def test_a_killed_engine_ends_the_session_with_a_reason(
    connection: Connection, core: RunningCore, engine: str
) -> None:
    with guest(connection, engine, ENDLESS) as (session, _, vcpu):
        (pid,) = core.engine_pids()
        threading.Timer(0.05, os.kill, (pid, signal.SIGKILL)).start()
        begin = time.monotonic()
        with pytest.raises(SessionEnded) as caught:
            next(vcpu.exits())
        assert time.monotonic() - begin < NOTICED_SECONDS
        assert caught.value.session == session.name
        assert caught.value.why


@on_every_engine
def test_a_killed_core_ends_the_session(core: RunningCore, engine: str) -> None:
    with (
        connect(str(core.socket)) as connection,
        guest(connection, engine, ENDLESS) as (_, _, vcpu),
    ):
        threading.Timer(0.05, core.kill).start()
        begin = time.monotonic()
        with pytest.raises(SessionEnded):
            next(vcpu.exits())
        assert time.monotonic() - begin < NOTICED_SECONDS


@on_every_engine
def test_closing_the_session_ends_the_iterator_of_another_thread(
    connection: Connection, engine: str
) -> None:
    with guest(connection, engine, ENDLESS) as (session, _, vcpu):
        seen: list[Reason] = []
        thread = threading.Thread(target=lambda: seen.extend(e.reason for e in vcpu.exits()))
        thread.start()
        session.close()
        thread.join(NOTICED_SECONDS)
        assert not thread.is_alive()
        assert set(seen) <= {Reason.PAUSED}
        with pytest.raises(Closed):
            vcpu.run()


@on_every_engine
def test_nothing_is_left_in_this_process(connection: Connection, engine: str) -> None:
    def holdings() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text().count("memfd:")
        return len(list(Path("/proc/self/fd").iterdir())), maps

    before = holdings()
    with guest(connection, engine, "hlt") as (_, ram, vcpu):
        assert next(vcpu.exits()).reason is Reason.HLT
        assert ram.read(0, 1) == b"\xf4"
        assert holdings() == (before[0] + 2, before[1] + 2)  # a page, and the memory
    assert holdings() == before


@on_every_engine
def test_detached_memory_is_gone_for_the_guest_and_for_us(
    connection: Connection, engine: str
) -> None:
    with guest(connection, engine, "mov al, [0x2000]; hlt") as (session, _, vcpu):
        pieces = session.detach(0x2000, 0x1000)
        assert [(piece.gpa, piece.size, piece.offset) for piece in pieces] == [
            (0x2000, 0x1000, 0x2000)
        ]
        assert [a.gpa for a in session.memory.attachments()] == [0, 0x3000]
        with pytest.raises(NotAttached):
            session.memory.read(0x2000, 1)
        exit_ = next(vcpu.exits())
        assert (exit_.reason, exit_.address, exit_.is_read) == (Reason.MMIO, 0x2000, True)


@on_every_engine
def test_refusals_are_typed_and_have_their_numbers(connection: Connection, engine: str) -> None:
    with connection.create_session(engine) as session, connection.create_ram(RAM_SIZE) as ram:
        session.attach(ram, gpa=0)
        with pytest.raises(Refused, match="REGION_CONFLICT") as caught:
            session.attach(ram, gpa=0x1000, size=0x1000)
        assert caught.value.code == "FAILED_PRECONDITION"
        assert "overlap 0x10000 bytes at 0x0" in caught.value.message
        with pytest.raises(Refused) as caught:
            session.attach(ram, gpa=0x123)
        assert caught.value.reason == "INVALID_RANGE"
        session.create_vcpu()
        with pytest.raises(Refused) as caught:
            session.create_vcpu()
        assert caught.value.reason == "ALREADY_EXISTS"
        assert session.memory.size == RAM_SIZE


def test_more_memory_than_the_quota_is_refused_with_what_to_do(connection: Connection) -> None:
    with pytest.raises(Refused) as caught:
        connection.create_ram(1 << 50)
    assert caught.value.reason in ("OUT_OF_RAM", "INVALID_ARGUMENT")
    with pytest.raises(Refused) as caught:
        connection.create_session("perpetuum mobile")
    assert caught.value.reason == "ENGINE_UNAVAILABLE"
    assert "vmm doctor" in caught.value.hint


def test_a_session_is_given_more_of_its_clients_quota(connection: Connection) -> None:
    with connection.create_session() as session, connection.create_ram(RAM_SIZE) as ram:
        limit = session.upgrade().capabilities.limit
        for number in range(limit):
            session.attach(ram, gpa=number * RAM_SIZE)
        with pytest.raises(Refused) as caught:
            session.attach(ram, gpa=limit * RAM_SIZE)
        assert caught.value.reason == "OUT_OF_CAPS"
        told = {name: caught.value.metadata[name] for name in ("asked", "used", "limit")}
        assert told == {"asked": "1", "used": str(limit), "limit": str(limit)}
        upgraded = session.upgrade(ram=0x1000, capabilities=2)
        assert (upgraded.capabilities.used, upgraded.capabilities.limit) == (limit, limit + 2)
        session.attach(ram, gpa=limit * RAM_SIZE)
        with pytest.raises(Refused) as caught:
            session.upgrade(ram=1 << 62)
        assert caught.value.reason == "OUT_OF_RAM"


def test_memory_that_somebody_still_maps_is_told_as_held(connection: Connection) -> None:
    ram = connection.create_ram(RAM_SIZE)
    view = ram.view
    ram.close()
    assert ram.held
    with pytest.raises(Closed):
        ram.read(0, 1)
    view[0] = 1  # and it is still there: nobody is killed by SIGBUS
    other = connection.create_ram(RAM_SIZE)
    assert other.read(0, 1) == b"\0"
    other.close()
    other.close()
    assert not other.held


def test_closing_the_connection_closes_all_that_is_open(core: RunningCore, stubs: Stubs) -> None:
    connection = connect(str(core.socket))
    session, ram = connection.create_session(), connection.create_ram(RAM_SIZE)
    session.attach(ram, gpa=0)
    vcpu = session.create_vcpu()
    connection.close()
    connection.close()
    totals = stubs.totals()
    assert (totals.sessions, totals.live) == (0, 0)
    with pytest.raises(Closed):
        vcpu.run()
    with pytest.raises(Closed):
        connection.engines()


def test_a_path_is_no_uri(core: RunningCore, stubs: Stubs, tmp_path: Path) -> None:
    odd = tmp_path / "a b%41#?"
    odd.symlink_to(core.directory)
    with connect(str(odd / "core.sock")) as connection:
        assert connection.info.client.pid == os.getpid()


def test_two_connections_of_a_process_end_on_their_own(core: RunningCore, stubs: Stubs) -> None:
    with connect(str(core.socket)) as first:
        with connect(str(core.socket)) as second, second.create_session():
            assert stubs.totals().sessions == 1
        with first.create_session() as session, first.create_ram(RAM_SIZE) as ram:
            session.attach(ram, gpa=0)
            assert stubs.totals().sessions == 1


def test_the_example_of_the_readme(core: RunningCore, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_vmm(str(core.socket))
    lines = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    said = "".join(chr(int(line.split()[-1], 16)) for line in lines if "out 0xe9" in line)
    assert said == "Hello !"
    assert lines[0] == "STARTUP"
    assert lines[-1] == "HLT at 0x10"
