"""The client library over the stream transport: a VMM sees no difference to a shared page."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from vmsession.v1.vm_session_pb2_grpc import VmSessionServiceStub

from dataspace.vcpu_page import (
    REPLY_FLAGS_AT,
    REPLY_INJECTION_AT,
    REPLY_WRITTEN_COUNT_AT,
    ReplyRefusal,
)
from tests.guests.assemble import assemble
from tests.integration.engines import on_every_engine
from tests.integration.running_core import RunningCore, Stubs
from tests.integration.waiting import eventually
from vmm_client import (
    Activity,
    Connection,
    Entrypoint,
    Injection,
    Reason,
    Segment,
    Session,
    Vcpu,
    connect,
)
from vmm_client.engine_side import EngineSide
from vmm_client.errors import Closed, MidInstruction, Refused, SessionEnded
from vmm_client.relay import Relay

CODE = Segment(0, 0x9B, 0xFFFF, 0)
VIDEO = Segment(0xA000, 0x93, 0xFFFF, 0xA0000)
NOTICED_SECONDS = 5.0  # the promise is about one; this machine is shared
ENDLESS = "again: jmp again"


@pytest.fixture
def connection(core: RunningCore, stubs: Stubs) -> Iterator[Connection]:
    """A connection; `stubs` proves afterwards that nothing is left, and this that no thread is."""
    threads = set(threading.enumerate())
    with connect(str(core.socket)) as opened:
        yield opened
    eventually(lambda: not relays(threads), lambda: f"left: {relays(threads)}")


def relays(before: set[threading.Thread]) -> list[str]:
    return [
        each.name for each in threading.enumerate() if each not in before and "relay" in each.name
    ]


@contextmanager
def guest(
    connection: Connection, engine: str, source: str, vcpus: int = 1
) -> Iterator[tuple[Session, list[Vcpu]]]:
    """Real-mode code at 0:0 in 64 KiB of memory; the first vCPU stands at STARTUP, ready to enter."""
    with connection.create_session(engine) as session, connection.create_ram(0x10000) as ram:
        session.attach(ram, gpa=0)
        session.memory.write(0, assemble(source.replace("; ", "\n"), 16))
        made = [session.create_vcpu(n, stream=True) for n in range(vcpus)]
        for vcpu in made:
            assert vcpu.turn(20) is not None
            vcpu.registers.update({"cs": CODE, "rip": 0})
        yield session, made


def turn(vcpu: Vcpu) -> str:
    exit_ = vcpu.turn(20)
    assert exit_ is not None
    return str(exit_)


@on_every_engine
def test_reads_and_writes_of_all_kinds(connection: Connection, engine: str) -> None:
    source = """in al, 0x60; inc al; out 0x61, al; mov [es:0x10], ax; mov bx, [es:0x20]
        mov di, 0x100; mov cx, 5; mov dx, 0x62; push ds; pop es; rep insw; hlt"""
    with guest(connection, engine, source) as (session, (vcpu,)):
        vcpu.registers.es = VIDEO
        vcpu.registers.ds = Segment(0, 0x93, 0xFFFF, 0)
        vcpu.want("rbx", "es")
        assert turn(vcpu) == "PORT in 0x60 size 1"
        vcpu.exit.reply(41)
        assert turn(vcpu) == "PORT out 0x61 size 1 value 0x2a"
        assert vcpu.exit.mid_instruction
        assert turn(vcpu).startswith("MMIO write 0xa0010 size 2")
        assert turn(vcpu) == "MMIO read 0xa0020 size 2"
        vcpu.exit.reply(0xBEEF)
        words = bytearray()
        while vcpu.turn(20) and vcpu.exit.reason is Reason.PORT:
            count = vcpu.exit.count
            vcpu.exit.reply_data(bytes(range(len(words), len(words) + 2 * count)))
            words += bytes(range(len(words), len(words) + 2 * count))
        assert vcpu.exit.reason is Reason.HLT
        assert len(words) == 10
        assert session.memory.read(0x100, 10) == words
        assert vcpu.registers.rbx & 0xFFFF == 0xBEEF
        assert vcpu.registers.es == Segment(0, 0x93, 0xFFFF, 0)
        assert "rcx" not in vcpu.registers


@on_every_engine
def test_startup_delivers_everything_that_the_engine_has(
    connection: Connection, engine: str
) -> None:
    with (
        connection.create_session(engine) as session,
        connection.create_ram(0x1000) as ram,
    ):
        session.attach(ram, gpa=0)
        shared, streamed = session.create_vcpu(0), session.create_vcpu(1, stream=True)
        for vcpu in (shared, streamed):
            assert turn(vcpu) == "STARTUP"
        moving = {"tsc", "tsc_offset"}
        told = [
            {name: value for name, value in vcpu.registers.items() if name not in moving}
            for vcpu in (shared, streamed)
        ]
        assert told[0].pop("apic_base", 0) != told[1].pop(
            "apic_base", 1
        )  # the first is the boot CPU
        assert told[0] == told[1]
        assert set(session.capabilities.registers) - moving - {"apic_base"} == set(told[1])
        assert shared.tsc_khz == streamed.tsc_khz


@on_every_engine
def test_registers_are_fetched_and_what_was_answered_is_kept(
    connection: Connection, engine: str
) -> None:
    with guest(connection, engine, "mov ebx, 7; out 1, al; hlt; nop; hlt") as (_, (vcpu,)):
        turn(vcpu)
        with pytest.raises(MidInstruction):
            vcpu.fetch("rbx")
        vcpu.exit.complete()
        assert turn(vcpu).startswith("COMPLETED")
        vcpu.want("rip")
        assert turn(vcpu).startswith("HLT")
        vcpu.registers.rip += 1
        assert vcpu.fetch("rbx").rbx == 7
        assert turn(vcpu).startswith("HLT at 0x")
        assert "rbx" not in vcpu.registers
        vcpu.want()
        turn(vcpu)
        assert "rip" not in vcpu.registers


@on_every_engine
def test_the_fpu_travels_whole(connection: Connection, engine: str) -> None:
    with guest(connection, engine, "fldpi; hlt") as (session, (vcpu,)):
        if "fpu" not in session.capabilities.features:
            pytest.skip(f"engine {engine} has no fpu")
        area = bytearray(vcpu.registers.fpu)
        area[160:176] = bytes(range(16))  # XMM0 in the legacy area
        area[512] |= 0x2
        vcpu.registers.fpu = bytes(area)
        vcpu.want("fpu")
        turn(vcpu)
        assert vcpu.registers.fpu[160:176] == bytes(range(16))


@on_every_engine
def test_an_endless_guest_is_paused_and_told_which_request_that_answers(
    connection: Connection, engine: str
) -> None:
    with guest(connection, engine, ENDLESS) as (_, (vcpu,)):
        vcpu.run()
        vcpu.pause()
        assert vcpu.wait(20) is not None
        assert vcpu.exit.reason is Reason.PAUSED
        assert vcpu.pauses_acknowledged == 1
        assert (vcpu.pause(), vcpu.pause()) == (2, 3)
        assert turn(vcpu).startswith("PAUSED")
        assert vcpu.pauses_acknowledged == 3


@on_every_engine
def test_an_interrupt_waits_for_its_window(connection: Connection, engine: str) -> None:
    source = "cli; out 1, al; sti; nop; again: jmp again; .org 0x40; hlt"
    with guest(connection, engine, source) as (session, (vcpu,)):
        vcpu.registers.ss = Segment(0, 0x93, 0xFFFF, 0)
        vcpu.registers.rsp = 0x8000
        session.memory.write(0x21 * 4, bytes.fromhex("40000000"))
        turn(vcpu)
        vcpu.exit.complete()
        turn(vcpu)
        vcpu.inject(0x21)
        vcpu.exit.complete()
        vcpu.request_window()
        exit_ = vcpu.turn(20)
        assert exit_ is not None
        assert exit_.injection is Injection.NOT_TAKEN
        while vcpu.exit.reason is not Reason.WINDOW:
            turn(vcpu)
        vcpu.inject(0x21)
        exit_ = vcpu.turn(20)
        assert exit_ is not None
        assert (exit_.reason, exit_.injection, exit_.ip) == (Reason.HLT, Injection.TAKEN, 0x40)


@on_every_engine
def test_code_that_the_vmm_writes_is_executed(connection: Connection, engine: str) -> None:
    with guest(connection, engine, "out 1, al; out 2, al; hlt") as (session, (vcpu,)):
        turn(vcpu)
        for n in range(12):  # more than a reply has room for
            session.memory.write(0x300 + 2 * n, b"\x90")
        session.memory.write(2, assemble("out 3, al", 16))
        assert turn(vcpu).startswith("PORT out 0x3")


@on_every_engine
def test_a_refused_reply_gives_the_exit_that_a_page_gives(
    connection: Connection, engine: str
) -> None:
    """Also where no message can say what stands in the page."""
    with guest(connection, engine, "out 1, al; hlt") as (session, (streamed,)):
        shared = session.create_vcpu(1)
        turn(shared)
        shared.registers.update({"cs": CODE, "rip": 0})
        told = [refusals(vcpu) for vcpu in (shared, streamed)]
        assert told[0] == told[1]
        assert [check for check, *_ in told[1]] == [
            ReplyRefusal.FLAGS,
            ReplyRefusal.FLAGS,
            ReplyRefusal.INJECTION,
            ReplyRefusal.INJECTION,
            ReplyRefusal.WRITTEN_COUNT,
            ReplyRefusal.WRITTEN_RANGE,
            ReplyRefusal.ACTIVITY,
        ]


def refusals(vcpu: Vcpu) -> list[tuple[int, int, int]]:
    """What the engine says to replies that cannot be, at a PORT exit; the vCPU goes on after them."""
    told = []
    turn(vcpu)
    for word, value in (
        (REPLY_FLAGS_AT, 0x8000),
        (REPLY_FLAGS_AT, 0x6),  # FETCH and FAULT
        (REPLY_INJECTION_AT, 0x20),
        (REPLY_INJECTION_AT, 0x80000420),
        (REPLY_WRITTEN_COUNT_AT, 9),
        (None, 0),
        (None, 1),
    ):
        if word is not None:
            vcpu.reply.dirty = True
            vcpu.reply.half.u32[word // 4] = value
        elif value:
            vcpu.registers.activity = 77
        else:
            vcpu.reply.written([(0x1000, 0)])
        exit_ = vcpu.turn(20)
        assert exit_ is not None
        assert exit_.reason is Reason.INVALID_STATE
        told.append((exit_.detail, exit_.address, exit_.sequence))
    assert turn(vcpu).startswith("HLT")
    return told


@on_every_engine
def test_one_thread_serves_both_kinds_and_one_may_stay(connection: Connection, engine: str) -> None:
    with guest(connection, engine, "out 1, al; out 2, al; hlt") as (session, (first,)):
        second = session.create_vcpu(1)
        seen: dict[Vcpu, list[int]] = {first: [], second: []}
        other = threading.Thread(target=first.run)
        for vcpu, exit_ in Entrypoint([first, second]).exits():
            if exit_.reason is Reason.STARTUP:
                vcpu.registers.update({"cs": CODE, "rip": 0})
            elif exit_.reason is Reason.PORT:
                seen[vcpu].append(exit_.address)
            if vcpu is first and exit_.reason is Reason.HLT:
                break
            if (exit_.address == 1 and vcpu is first) or exit_.reason is Reason.HLT:
                vcpu.stay()
            if first.staying and second.staying:
                other.start()
        other.join(NOTICED_SECONDS)
        assert seen == {first: [1, 2], second: [1, 2]}


@on_every_engine
def test_closing_the_session_ends_who_waits(connection: Connection, engine: str) -> None:
    with guest(connection, engine, ENDLESS) as (session, (vcpu,)):
        threading.Timer(0.05, session.close).start()
        started = time.monotonic()
        assert list(vcpu.exits()) == []
        assert time.monotonic() - started < NOTICED_SECONDS
        with pytest.raises(Closed):
            vcpu.run()


@on_every_engine
def test_a_killed_engine_ends_the_wait(connection: Connection, engine: str) -> None:
    with guest(connection, engine, ENDLESS) as (session, (vcpu,)):
        pid = next(s.engine_pid for s in connection.sessions() if s.name == session.name)
        vcpu.run()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(SessionEnded, match=session.name):
            vcpu.wait(NOTICED_SECONDS)


def test_a_killed_core_ends_the_wait(core: RunningCore, stubs: Stubs) -> None:
    with (
        connect(str(core.socket)) as connection,
        guest(connection, "soft", ENDLESS) as (_, (vcpu,)),
    ):
        vcpu.run()
        core.kill()
        with pytest.raises(SessionEnded, match="core"):
            vcpu.wait(NOTICED_SECONDS)


@on_every_engine
def test_what_no_exit_can_tell_is_raised(connection: Connection, engine: str) -> None:
    """Another stream takes over, and core refuses ours any further reply."""
    with guest(connection, engine, "hlt") as (_, (vcpu,)):
        name, rpc = vcpu.name, connection.rpc
        other = Relay(name, EngineSide(0, 0), rpc, VmSessionServiceStub(rpc.channel))
        other.start()
        eventually(lambda: refused(vcpu) == "TAKEN_OVER")
        with pytest.raises(Refused, match="TAKEN_OVER"):
            vcpu.turn(NOTICED_SECONDS)
        other.end()
        other.join()


def refused(vcpu: Vcpu) -> str:
    try:
        vcpu.check_alive()
    except Refused as refusal:
        return refusal.reason
    return ""


@on_every_engine
def test_an_application_processor_waits_for_its_start(connection: Connection, engine: str) -> None:
    source = "out 1, al; hlt; .org 0x1000; out 2, al; hlt"
    with guest(connection, engine, source, vcpus=2) as (_, (boot, other)):
        other.registers.init()
        other.run()
        turn(boot)
        assert other.wait(0) is None
        other.pause()
        assert other.wait(20) is not None
        assert other.exit.reason is Reason.PAUSED
        assert other.fetch("activity").activity == Activity.WAIT_FOR_SIPI
        other.registers.start_up(1)
        assert turn(other).startswith("PORT out 0x2")
