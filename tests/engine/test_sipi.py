"""A processor that waits for its start-up IPI: SDM vol. 3, 8.4."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from core_service.engine.protocol import Capability, Status, Transport, Type
from dataspace.registers import Segment
from dataspace.vcpu_page import Activity, ExitFlag, Injection, InjectType, Reason, ReplyFlag
from tests.engine.harness import ORIGIN, Engine, Vcpu, guest


@pytest.fixture
def waiting(engine: Engine, transport: Transport) -> Iterator[Vcpu]:
    """A vCPU that waits, at its first PAUSED: what it executes once started reports rcx."""
    with guest(engine, transport, "mov ax, cx; out 0x80, ax; hlt", "real") as vcpu:
        vcpu.charge(activity=Activity.WAIT_FOR_SIPI, rcx=0x5A5A, rflags=0x202)
        vcpu.pause()
        vcpu.expect(Reason.PAUSED)
        yield vcpu


def start_up(vcpu: Vcpu, vector: int) -> None:
    """SIPI, as a VMM makes it of an ICR write."""
    vcpu.charge(cs=Segment(vector << 8, 0x9B, 0xFFFF, vector << 12), rip=0)
    vcpu.charge(activity=Activity.ACTIVE)


def test_it_executes_nothing_until_it_is_started(waiting: Vcpu) -> None:
    assert waiting.fetch("rip", "activity") == {"rip": ORIGIN, "activity": Activity.WAIT_FOR_SIPI}
    assert not waiting.exit.flags & (ExitFlag.INTERRUPTIBLE | ExitFlag.NMI_OPEN)
    for number in range(2, 5):
        waiting.start()
        waiting.pause()
        waiting.wait()
        assert waiting.reason == Reason.PAUSED
        assert waiting.exit.pause_ack == number
    start_up(waiting, ORIGIN >> 12)
    assert waiting.expect(Reason.PORT).value == 0x5A5A


def test_registers_alone_do_not_start_it(waiting: Vcpu) -> None:
    """Not even rip, which ends HLT: it is a part of INIT's state."""
    waiting.charge(rip=ORIGIN, rcx=0x77)
    waiting.pause()
    waiting.expect(Reason.PAUSED)
    assert waiting.fetch("rcx", "activity") == {"rcx": 0x77, "activity": Activity.WAIT_FOR_SIPI}


@pytest.mark.parametrize("kind", list(InjectType))
def test_no_event_reaches_it(waiting: Vcpu, kind: InjectType) -> None:
    waiting.reply.inject(kind, {InjectType.INTERRUPT: 0x20, InjectType.NMI: 2}.get(kind, 6))
    waiting.pause()
    assert waiting.expect(Reason.PAUSED).injection == Injection.NOT_TAKEN
    start_up(waiting, ORIGIN >> 12)
    assert waiting.expect(Reason.PORT).injection == Injection.NONE


def test_its_window_is_closed_until_it_is_started(waiting: Vcpu) -> None:
    waiting.window()
    waiting.pause()
    assert waiting.expect(Reason.PAUSED).window_ack == 0
    start_up(waiting, ORIGIN >> 12)
    assert waiting.expect(Reason.WINDOW).window_ack == 1


def test_it_waits_without_using_the_processor(waiting: Vcpu) -> None:
    """Also for a window that does not open."""
    waiting.window()
    waiting.start()
    while waiting.packet_status(Type.GET_STATE) != Status.NOT_STOPPED:
        pass
    assert waiting.engine.falls_asleep("vcpu 0")
    waiting.pause()
    waiting.wait()
    assert waiting.reason == Reason.PAUSED


def test_memory_changes_while_it_waits(waiting: Vcpu) -> None:
    waiting.start()
    with waiting.engine.ram(0x100000):
        pass
    waiting.pause()
    waiting.wait()
    assert waiting.reason == Reason.PAUSED


def test_the_end_finds_it(spawn: Callable[[], Engine], transport: Transport) -> None:
    with spawn() as engine:
        engine.hello()
        with guest(engine, transport, "hlt", "real") as vcpu:
            vcpu.charge(activity=Activity.WAIT_FOR_SIPI)
            vcpu.start()
            engine.unmap(0x100000, 0x1000)
        engine.channel.close()
        assert engine.wait() == 0


def test_complete_is_answered(waiting: Vcpu) -> None:
    waiting.reply.set_flags(ReplyFlag.COMPLETE)
    waiting.expect(Reason.COMPLETED)


def test_a_step_is_forgotten_with_the_pause(engine: Engine, waiting: Vcpu) -> None:
    engine.need(Capability.DEBUG)
    waiting.reply.set_flags(ReplyFlag.STEP)
    waiting.pause()
    waiting.expect(Reason.PAUSED)
    start_up(waiting, ORIGIN >> 12)
    waiting.expect(Reason.PORT)


def test_set_state_starts_it(waiting: Vcpu) -> None:
    waiting.charge(activity=Activity.ACTIVE)
    assert waiting.packet_status(Type.SET_STATE) == Status.OK
    waiting.reply.clear_reply()
    assert waiting.expect(Reason.PORT).value == 0x5A5A
