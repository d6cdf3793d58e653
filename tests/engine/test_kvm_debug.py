"""Single step and breakpoints of KVM's vCPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from core_service.engine.protocol import Capability, Transport
from dataspace.vcpu_page import Activity, InjectType, Reason, ReplyFlag
from tests.engine.harness import ORIGIN, STACK, Engine, Vcpu, guest

pytestmark = pytest.mark.parametrize("variant", ["kvm", "kvm-sanitized"], indirect=True)

STEPPED: Final = 0x4000
HOLE: Final = 0x100000
EMULATED: Final = ("real", "protected", "long")
SOFTWARE: Final = Path("/sys/module/kvm_pvm").exists()
NO_NATIVE_DEBUG: Final = "this host's KVM (kvm_pvm) debugs nothing in 64-bit ring 3"
NO_WATCH: Final = "this host's KVM (kvm_pvm) emulates, without breakpoints on data"


@pytest.fixture(params=EMULATED)
def mode(request: pytest.FixtureRequest) -> str:
    """Modes that every host's KVM can debug."""
    chosen: str = request.param
    return chosen


def step(vcpu: Vcpu) -> None:
    """For the next run."""
    vcpu.reply.set_flags(ReplyFlag.STEP)


def stepped_to(vcpu: Vcpu, address: int) -> None:
    """DEBUG after one instruction, and nothing else."""
    exit_ = vcpu.expect(Reason.DEBUG)
    assert (exit_.detail, exit_.address, exit_.ip) == (STEPPED, address, address), vcpu.describe()


def break_at(vcpu: Vcpu, *addresses: int, control: int | None = None, flags: int = 0) -> None:
    """Breakpoints from the next run on, by default on execution."""
    each = sum(2 << 2 * number for number in range(len(addresses)))
    vcpu.reply.set_breakpoints(addresses, each if control is None else control)
    vcpu.reply.set_flags(ReplyFlag.BREAKPOINTS | flags)


def test_steps(engine: Engine, transport: Transport, mode: str) -> None:
    with guest(engine, transport, "nop; nop; hlt", mode) as vcpu:
        for address in (ORIGIN + 1, ORIGIN + 2):
            step(vcpu)
            stepped_to(vcpu, address)
        assert vcpu.scalar("rip") == ORIGIN + 2
        vcpu.expect(Reason.HLT)


def test_a_step_begins_where_it_is_charged(engine: Engine, mode: str) -> None:
    with guest(engine, Transport.PAGE, "nop; nop; nop; hlt", mode) as vcpu:
        step(vcpu)
        stepped_to(vcpu, ORIGIN + 1)
        vcpu.charge(rip=ORIGIN, rax=5)
        step(vcpu)
        stepped_to(vcpu, ORIGIN + 1)
        assert vcpu.scalar("rax") == 5
        vcpu.expect(Reason.HLT)


def test_a_step_of_an_output_ends_behind_it(engine: Engine, transport: Transport) -> None:
    with guest(engine, transport, "out 0x80, al; nop; hlt") as vcpu:
        step(vcpu)
        vcpu.expect(Reason.PORT)
        stepped_to(vcpu, ORIGIN + 2)
        vcpu.expect(Reason.HLT)


def test_a_step_of_an_input_has_the_data(engine: Engine, transport: Transport) -> None:
    with guest(engine, transport, "in al, 0x80; nop; hlt") as vcpu:
        step(vcpu)
        vcpu.expect(Reason.PORT)
        vcpu.reply.set_value(0x5A)
        stepped_to(vcpu, ORIGIN + 2)
        assert vcpu.scalar("rax") & 0xFF == 0x5A


@pytest.mark.parametrize("access", [f"mov [{HOLE - 2}], eax", f"mov eax, [{HOLE - 2}]"])
def test_a_step_of_an_access_to_two_pages(
    engine: Engine, transport: Transport, access: str
) -> None:
    """Two exits, then DEBUG."""
    with guest(engine, transport, f"{access}; nop; hlt") as vcpu:
        step(vcpu)
        vcpu.expect(Reason.MMIO)
        vcpu.expect(Reason.MMIO)
        stepped_to(vcpu, ORIGIN + 5)


def test_a_step_of_hlt_halts_once(engine: Engine, mode: str) -> None:
    """KVM's emulator loses a HLT that it steps over, and halts at the next instruction."""
    with guest(engine, Transport.PAGE, "hlt; nop; nop; hlt", mode) as vcpu:
        step(vcpu)
        assert vcpu.expect(Reason.HLT).ip == ORIGIN
        vcpu.charge(activity=Activity.ACTIVE)
        assert vcpu.expect(Reason.HLT).ip == ORIGIN + 3


def test_a_step_that_a_pause_comes_before(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "nop; nop; hlt") as vcpu:
        vcpu.pause()
        step(vcpu)
        vcpu.expect(Reason.PAUSED)
        assert vcpu.scalar("rip") == ORIGIN
        vcpu.expect(Reason.HLT)


def test_execution_breakpoint(engine: Engine, transport: Transport, mode: str) -> None:
    """It stops before the instruction; the next run goes on behind it."""
    with guest(engine, transport, "nop; 1: nop; inc ax; jmp 1b", mode) as vcpu:
        vcpu.charge(rax=0)
        break_at(vcpu, 0x8000, ORIGIN + 1)
        for passed in range(3):
            exit_ = vcpu.expect(Reason.DEBUG)
            assert (exit_.detail, exit_.address) == (2, ORIGIN + 1)
            assert vcpu.scalar("rax") == passed


def test_neighbouring_breakpoints_all_stop(engine: Engine, mode: str) -> None:
    with guest(engine, Transport.PAGE, "nop; nop; nop; hlt", mode) as vcpu:
        vcpu.pause()
        vcpu.expect(Reason.PAUSED)
        break_at(vcpu, ORIGIN, ORIGIN + 1, ORIGIN + 2)
        for number in (1, 2):
            exit_ = vcpu.expect(Reason.DEBUG)
            assert (exit_.detail, exit_.address) == (1 << number, ORIGIN + number)
        vcpu.expect(Reason.HLT)


@pytest.mark.parametrize("access", ["out 0x80, al", "in al, 0x80"])
def test_a_breakpoint_behind_one_that_is_stepped_over(engine: Engine, access: str) -> None:
    """The instruction stepped over exits in its middle."""
    with guest(engine, Transport.PAGE, f"nop; {access}; nop; hlt") as vcpu:
        break_at(vcpu, ORIGIN + 1, ORIGIN + 3)
        assert vcpu.expect(Reason.DEBUG).address == ORIGIN + 1
        vcpu.expect(Reason.PORT)
        assert vcpu.expect(Reason.DEBUG).address == ORIGIN + 3
        vcpu.expect(Reason.HLT)


def test_breakpoints_set_in_the_middle_of_an_instruction(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "out 0x80, al; nop; hlt") as vcpu:
        vcpu.expect(Reason.PORT)
        break_at(vcpu, ORIGIN + 2)
        assert vcpu.expect(Reason.DEBUG).address == ORIGIN + 2


def test_breakpoints_are_cleared(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "nop; 1: nop; out 0x80, al; jmp 1b") as vcpu:
        break_at(vcpu, ORIGIN + 1)
        vcpu.expect(Reason.DEBUG)
        break_at(vcpu)
        vcpu.expect(Reason.PORT)
        vcpu.expect(Reason.PORT)


def test_a_breakpoint_in_the_handler_of_what_is_injected(engine: Engine) -> None:
    """At the instruction that is stepped over an interrupt comes first, and its handler breaks too."""
    with guest(engine, Transport.PAGE, "nop; nop; hlt", "real") as vcpu:
        assert vcpu.memory
        handler = ORIGIN + 0x100
        vcpu.memory[handler] = 0xF4
        vcpu.memory[0x40 * 4 : 0x40 * 4 + 4] = handler.to_bytes(4, "little")
        vcpu.charge(rflags=0x202)
        break_at(vcpu, ORIGIN + 1, handler)
        assert vcpu.expect(Reason.DEBUG).address == ORIGIN + 1
        vcpu.reply.inject(InjectType.INTERRUPT, 0x40)
        assert vcpu.expect(Reason.DEBUG).address == handler
        assert vcpu.exit.injection == 1
        assert vcpu.expect(Reason.HLT).ip == handler


def test_debug_registers_of_the_guest_are_its_own(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "nop; mov eax, dr7; hlt", "protected") as vcpu:
        break_at(vcpu, ORIGIN + 1)
        vcpu.expect(Reason.DEBUG)
        assert vcpu.scalar("dr7") == 0x400
        vcpu.expect(Reason.HLT)
        assert vcpu.scalar("rax") == 0x400


def test_watch_is_offered_where_it_works(spawn: Callable[[], Engine]) -> None:
    with spawn() as engine:
        capabilities = engine.hello().capabilities
        assert Capability.DEBUG in capabilities
        assert (Capability.WATCH in capabilities) == (not SOFTWARE)


@pytest.mark.skipif(SOFTWARE, reason=NO_WATCH)
def test_data_breakpoint(engine: Engine, mode: str) -> None:
    """It stops behind the write."""
    write = 0x1 << 16
    source = f"mov byte ptr [{STACK}], 1; nop; hlt"
    with guest(engine, Transport.PAGE, source, mode) as vcpu:
        break_at(vcpu, STACK, control=2 | write)
        exit_ = vcpu.expect(Reason.DEBUG)
        assert exit_.detail == 1
        assert vcpu.memory
        assert vcpu.memory[STACK] == 1
        vcpu.expect(Reason.HLT)


@pytest.mark.skipif(not SOFTWARE, reason="this host's KVM debugs all modes")
def test_what_would_be_lost_is_refused(engine: Engine, transport: Transport) -> None:
    """In 64-bit ring 3 kvm_pvm gives the step to the guest, or forgets it."""
    with guest(engine, transport, f"1: mov [{HOLE}], eax; jmp 1b", "user") as vcpu:
        step(vcpu)
        vcpu.expect(Reason.INTERNAL_ERROR)
        assert vcpu.scalar("rip") == ORIGIN
        vcpu.expect(Reason.MMIO)


@pytest.mark.skipif(SOFTWARE, reason=NO_NATIVE_DEBUG)
def test_steps_in_ring_3(engine: Engine, transport: Transport) -> None:
    with guest(engine, transport, "nop; nop; nop", "user") as vcpu:
        for address in (ORIGIN + 1, ORIGIN + 2):
            step(vcpu)
            stepped_to(vcpu, address)


@pytest.fixture
def stopped(engine: Engine) -> Iterator[Vcpu]:
    """At its first instruction, in long mode."""
    with guest(engine, Transport.PAGE, "nop; hlt", "long") as vcpu:
        vcpu.pause()
        vcpu.expect(Reason.PAUSED)
        yield vcpu


def test_a_step_changes_no_flags(stopped: Vcpu) -> None:
    before = stopped.scalar("rflags")
    step(stopped)
    stepped_to(stopped, ORIGIN + 1)
    assert stopped.scalar("rflags") == before
    stopped.expect(Reason.HLT)
    assert stopped.scalar("rflags") == before
