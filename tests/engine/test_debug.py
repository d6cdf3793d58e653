"""Steps and breakpoints of the VMM: what common code makes of them on every engine that has them."""

from __future__ import annotations

import pytest

from core_service.engine.protocol import Capability, Transport
from dataspace.registers import Segment
from dataspace.vcpu_page import ExitFlag, Reason, ReplyFlag
from tests.engine.harness import ORIGIN, Engine, Vcpu, guest

STEPPED = 0x4000  # DR6.BS
FLAGS, STATE, BREAKPOINTS = 1, 7, 8  # enum vcpu_refusal


@pytest.fixture
def debugged(engine: Engine) -> Engine:
    """An engine that can."""
    engine.need(Capability.DEBUG)
    return engine


def stopped(vcpu: Vcpu, ip: int, status: int = STEPPED) -> None:
    """The last exit is DEBUG at `ip`, in a flat code segment."""
    assert vcpu.reason == Reason.DEBUG, vcpu.describe()
    assert vcpu.exit.detail == status, vcpu.describe()
    assert (vcpu.exit.ip, vcpu.exit.address) == (ip, ip)
    assert vcpu.exit.flags & ExitFlag.IP_VALID
    assert not vcpu.exit.flags & ExitFlag.MID_INSTRUCTION


@pytest.mark.parametrize("flag", [ReplyFlag.STEP, ReplyFlag.BREAKPOINTS])
def test_an_engine_without_it_refuses(engine: Engine, transport: Transport, flag: int) -> None:
    engine.lack(Capability.DEBUG)
    with guest(engine, transport, "hlt") as vcpu:
        vcpu.reply.set_flags(flag)
        assert vcpu.expect(Reason.INVALID_STATE).detail == FLAGS


@pytest.mark.parametrize("flag", [ReplyFlag.STEP, ReplyFlag.BREAKPOINTS, ReplyFlag.NMI_WINDOW])
def test_what_belongs_to_a_run_is_refused_with_fetch(
    engine: Engine, transport: Transport, flag: int
) -> None:
    with guest(engine, transport, "hlt") as vcpu:
        vcpu.expect(Reason.HLT)
        vcpu.reply.set_flags(ReplyFlag.FETCH | flag)
        assert vcpu.expect(Reason.INVALID_STATE).detail == FLAGS


def test_a_step_is_one_instruction(debugged: Engine, transport: Transport) -> None:
    with guest(debugged, transport, "inc eax; inc eax; inc eax; hlt") as vcpu:
        vcpu.charge(rax=0)
        for number in (1, 2):
            vcpu.step()
            stopped(vcpu, ORIGIN + number)  # one byte each
            assert vcpu.scalar("rax") == number
        assert vcpu.expect(Reason.HLT).ip == ORIGIN + 3


def test_the_linear_address_has_the_segments_base(debugged: Engine, transport: Transport) -> None:
    with guest(debugged, transport, "nop; in al, 0x60; hlt", "real") as vcpu:
        vcpu.charge(cs=Segment(0x80, 0x9B, 0xFFFF, 0x800), rip=ORIGIN - 0x800)
        for ip in (ORIGIN + 1, ORIGIN + 3):
            vcpu.step()
            if vcpu.reason == Reason.PORT:
                vcpu.run()
            assert vcpu.reason == Reason.DEBUG
            assert (vcpu.exit.ip, vcpu.exit.address) == (ip - 0x800, ip)


@pytest.mark.parametrize("asked", ["before", "amid", "both"])
def test_a_step_ends_behind_the_instruction_that_exits(
    debugged: Engine, transport: Transport, asked: str
) -> None:
    with guest(debugged, transport, "in al, 0x60; out 0x80, al; hlt") as vcpu:
        if asked != "amid":
            vcpu.reply.set_flags(ReplyFlag.STEP)
        vcpu.expect(Reason.PORT)
        if asked != "before":
            vcpu.reply.set_flags(ReplyFlag.STEP)
        vcpu.reply.set_value(0x33)
        vcpu.want("rax")
        vcpu.run()
        stopped(vcpu, ORIGIN + 2)
        rax = vcpu.exit.register("rax")
        assert isinstance(rax, int)
        assert rax & 0xFF == 0x33
        assert vcpu.expect(Reason.PORT).value == 0x33
        vcpu.expect(Reason.HLT)


def test_a_step_of_several_exits(debugged: Engine, transport: Transport) -> None:
    """Reads and writes the same address."""
    with guest(debugged, transport, "inc dword ptr [0x100000]; nop; hlt") as vcpu:
        vcpu.reply.set_flags(ReplyFlag.STEP)
        assert vcpu.expect(Reason.MMIO).flags & ExitFlag.READ
        vcpu.reply.set_value(0x41)
        assert vcpu.expect(Reason.MMIO).value == 0x42
        vcpu.run()
        stopped(vcpu, ORIGIN + 6)
        vcpu.expect(Reason.HLT)


def test_registers_charged_amid_a_step(debugged: Engine, transport: Transport) -> None:
    """They are in force where the step ends, and so is a pause with the run after it."""
    with guest(debugged, transport, "in al, 0x60; hlt; nop; hlt") as vcpu:
        vcpu.reply.set_flags(ReplyFlag.STEP)
        vcpu.expect(Reason.PORT)
        vcpu.charge(rip=ORIGIN + 3)
        vcpu.pause()
        vcpu.run()
        stopped(vcpu, ORIGIN + 3)
        vcpu.expect(Reason.PAUSED)
        assert vcpu.expect(Reason.HLT).ip == ORIGIN + 4


def test_completed_tells_of_the_step(debugged: Engine, transport: Transport) -> None:
    with guest(debugged, transport, "in al, 0x60; nop; nop; hlt") as vcpu:
        vcpu.expect(Reason.PORT)
        vcpu.reply.set_flags(ReplyFlag.STEP | ReplyFlag.COMPLETE)
        vcpu.expect(Reason.COMPLETED)
        assert vcpu.scalar("rip") == ORIGIN + 2
        vcpu.expect(Reason.HLT)


def test_any_exit_at_a_boundary_ends_the_step(debugged: Engine, transport: Transport) -> None:
    with guest(debugged, transport, "nop; nop; hlt") as vcpu:
        vcpu.pause()
        vcpu.reply.set_flags(ReplyFlag.STEP)
        vcpu.expect(Reason.PAUSED)
        assert vcpu.scalar("rip") == ORIGIN
        vcpu.expect(Reason.HLT)


def test_a_breakpoint_stops_before_the_instruction_and_is_stepped_over(
    debugged: Engine, transport: Transport
) -> None:
    with guest(debugged, transport, "1: inc eax; nop; jmp 1b") as vcpu:
        vcpu.charge(rax=0)
        vcpu.break_at(ORIGIN + 1)
        for number in (1, 2, 3):
            vcpu.run()
            stopped(vcpu, ORIGIN + 1, 0x1)
            assert vcpu.scalar("rax") == number
        vcpu.break_at()
        vcpu.start()
        vcpu.pause()
        vcpu.wait()
        assert vcpu.reason == Reason.PAUSED


def test_breakpoints_of_a_reply_amid_an_instruction(debugged: Engine, transport: Transport) -> None:
    with guest(debugged, transport, "in al, 0x60; nop; nop; hlt") as vcpu:
        vcpu.expect(Reason.PORT)
        vcpu.break_at(ORIGIN + 4, ORIGIN + 3)
        vcpu.run()
        stopped(vcpu, ORIGIN + 3, 0x2)
        vcpu.run()
        stopped(vcpu, ORIGIN + 4, 0x1)


@pytest.mark.parametrize(
    "control",
    [
        pytest.param(0x100, id="LE"),
        pytest.param(0x2000, id="GD"),
        pytest.param(0x1 | 2 << 16, id="ports"),
        pytest.param(0x1 | 4 << 16, id="execution with a length"),
        pytest.param(1 << 16, id="kind of what is off"),
        pytest.param(0x4 | 1 << 16, id="kind of another one"),
    ],
)
def test_malformed_breakpoints_are_refused(
    debugged: Engine, transport: Transport, control: int
) -> None:
    with guest(debugged, transport, "nop; hlt") as vcpu:
        vcpu.reply.set_breakpoints([ORIGIN + 1], control)
        vcpu.reply.set_flags(ReplyFlag.BREAKPOINTS)
        assert vcpu.expect(Reason.INVALID_STATE).detail == BREAKPOINTS


@pytest.mark.parametrize("kind", [1, 3])
@pytest.mark.parametrize(("length", "address"), [(1, 1), (2, 4), (2, 2), (3, 2)])
def test_unaligned_data_breakpoints_are_refused(
    debugged: Engine, transport: Transport, kind: int, length: int, address: int
) -> None:
    """LEN 1, 2 and 3 are 2, 8 and 4 bytes: SDM vol. 3, 17.2.5."""
    debugged.need(Capability.WATCH)
    with guest(debugged, transport, "hlt") as vcpu:
        vcpu.reply.set_breakpoints([0x2000 + address], 1 | (length << 2 | kind) << 16)
        vcpu.reply.set_flags(ReplyFlag.BREAKPOINTS)
        assert vcpu.expect(Reason.INVALID_STATE).detail == BREAKPOINTS


@pytest.mark.parametrize("kind", [1, 3])
def test_data_breakpoints_without_the_capability_are_refused(
    debugged: Engine, transport: Transport, kind: int
) -> None:
    debugged.lack(Capability.WATCH)
    with guest(debugged, transport, "hlt") as vcpu:
        vcpu.reply.set_breakpoints([0x2000], 1 | kind << 16)
        vcpu.reply.set_flags(ReplyFlag.BREAKPOINTS)
        assert vcpu.expect(Reason.INVALID_STATE).detail == BREAKPOINTS


@pytest.mark.parametrize("amid", [False, True], ids=["at a boundary", "amid an instruction"])
def test_breakpoints_of_a_refused_state_are_forgotten(
    debugged: Engine, transport: Transport, amid: bool
) -> None:
    """A reply is refused as a whole."""
    with guest(debugged, transport, "in al, 0x60; nop; nop; hlt") as vcpu:
        vcpu.expect(Reason.PORT)
        if not amid:
            vcpu.reply.set_flags(ReplyFlag.COMPLETE)
            vcpu.expect(Reason.COMPLETED)
        vcpu.charge(cr0=1 << 31)
        vcpu.break_at(ORIGIN + 3)
        assert vcpu.expect(Reason.INVALID_STATE).detail == STATE
        vcpu.expect(Reason.HLT)
