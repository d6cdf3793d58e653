"""Steps and breakpoints of the VMM, unseen by the guest."""

from __future__ import annotations

import pytest

from dataspace.registers import Segment
from dataspace.vcpu_page import Activity, Reason
from tests.conformance.claims import proves
from tests.conformance.handlers import Event, install, next_event
from tests.conformance.host import hardware_virtualization
from tests.conformance.machine import DATA, HOLE, ORIGIN, Machine, expect
from vmm_client.breakpoints import Breakpoint, BreakpointKind
from vmm_client.exits import Exit
from vmm_client.vcpu import Vcpu

pytestmark = proves("exit:DEBUG", "feature:debug")

UD, IRQ = 6, 0x20


@pytest.fixture(params=["real", "protected", "long", "user"])
def mode(request: pytest.FixtureRequest, engine: str) -> str:
    """A mode that can be debugged here."""
    if request.param == "user" and engine == "kvm" and not hardware_virtualization():
        pytest.skip("without VMX or SVM, KVM debugs nothing in 64-bit ring 3")
    chosen: str = request.param
    return chosen


def stepped(vcpu: Vcpu) -> Exit:
    """One step, which ends in nothing but DEBUG."""
    vcpu.step()
    exit_ = expect(vcpu, Reason.DEBUG)
    assert exit_.stepped
    assert exit_.breakpoints == ()
    return exit_


def hit(vcpu: Vcpu, *numbers: int) -> Exit:
    """Run into breakpoints."""
    exit_ = expect(vcpu, Reason.DEBUG)
    assert not exit_.stepped
    assert exit_.breakpoints == numbers
    return exit_


def test_one_instruction_at_a_time(machine: Machine, mode: str) -> None:
    """Through jumps; `ip` and the linear address tell what comes next."""
    source = ["mov al, 5", "inc al", "jmp 1f; nop; nop; 1:", "mov bl, al", "nop"]
    vcpu = machine.guest("; ".join(source) + "; jmp .", mode)
    lengths = [len(machine.load(line, mode, at=DATA)) for line in source]
    ip = ORIGIN
    vcpu.want("rip", "rbx")
    for length in lengths:
        exit_ = stepped(vcpu)
        ip += length
        assert (exit_.ip, exit_.address, vcpu.registers.rip) == (ip, ip, ip)
    assert vcpu.registers.rbx == 6


def test_the_address_is_linear(machine: Machine) -> None:
    """In a code segment with a base."""
    vcpu = machine.guest("nop; nop", "real")
    vcpu.registers.update({"cs": Segment(0x100, 0x9B, 0xFFFF, 0x1000), "rip": 0})
    exit_ = stepped(vcpu)
    assert (exit_.ip, exit_.address) == (1, ORIGIN + 1)


@pytest.mark.parametrize(
    "source", ["in al, 0x60", f"mov al, [{HOLE}]", f"add byte ptr [{HOLE}], 1"]
)
def test_exits_of_the_instruction_come_first(machine: Machine, source: str) -> None:
    """One step finishes it."""
    length = len(machine.load(source, at=DATA))
    vcpu = machine.guest(f"{source}; out 0x80, al; hlt")
    vcpu.step()
    exit_ = vcpu.turn(20)
    while exit_ and exit_.reason is not Reason.DEBUG:
        assert exit_.reason in {Reason.PORT, Reason.MMIO}
        assert exit_.address in {0x60, HOLE}
        exit_.reply(0x33)
        exit_ = vcpu.turn(20)
    assert exit_
    assert (exit_.ip, exit_.stepped) == (ORIGIN + length, True)
    assert expect(vcpu, Reason.PORT).address == 0x80  # it was one step


def test_a_step_asked_for_in_the_middle_finishes_the_instruction(machine: Machine) -> None:
    vcpu = machine.guest("in al, 0x60; out 0x80, al; hlt")
    expect(vcpu, Reason.PORT).reply(0x5A)
    assert stepped(vcpu).ip == ORIGIN + 2
    assert expect(vcpu, Reason.PORT).value == 0x5A


def test_a_step_is_forgotten_at_another_exit(machine: Machine) -> None:
    vcpu = machine.guest("hlt; nop; nop; hlt")
    vcpu.step()
    expect(vcpu, Reason.HLT)
    vcpu.registers.activity = Activity.ACTIVE
    assert expect(vcpu, Reason.HLT).ip == ORIGIN + 3


def test_a_pause_comes_before_a_step(machine: Machine) -> None:
    """Which is forgotten: nothing was executed."""
    vcpu = machine.guest("inc eax; hlt")
    vcpu.pause()
    vcpu.step()
    expect(vcpu, Reason.PAUSED)
    assert vcpu.fetch("rip").rip == ORIGIN
    expect(vcpu, Reason.HLT)


def test_a_step_into_a_handler(machine: Machine) -> None:
    """Its first instruction, `push eax`, may be a part of the step."""
    install(machine, "real", [UD])
    vcpu = machine.guest("ud2; hlt", "real")
    exit_ = stepped(vcpu)
    assert exit_.ip is not None
    assert exit_.ip - machine.word(4 * UD, 2) in {0, 2}
    assert next_event(vcpu)[0] == Event(UD, ORIGIN)


def test_the_guest_does_not_see_a_step(machine: Machine) -> None:
    """Neither TF in its flags nor, where it has DR6, BS or a breakpoint there."""
    dr6 = f"mov eax, dr6; mov [{DATA + 4}], eax;" if "register:dr6" in machine.claims else ""
    vcpu = machine.guest(f"pushfd; pop dword ptr [{DATA}]; {dr6} nop; hlt")
    for _ in range(5 if dr6 else 3):
        stepped(vcpu)
    assert machine.word(DATA) & 0x302 == 2
    assert machine.word(DATA + 4) & 0x400F == 0
    assert vcpu.fetch("rflags").rflags & 0x100 == 0


def test_a_breakpoint_on_execution(machine: Machine, mode: str) -> None:
    """Before the instruction, which the next run executes; again the next time round."""
    vcpu = machine.guest("1: nop; nop; jmp 1b", mode)
    vcpu.set_breakpoints(Breakpoint(ORIGIN + 1))
    for _ in range(3):
        exit_ = hit(vcpu, 0)
        assert (exit_.ip, exit_.address) == (ORIGIN + 1, ORIGIN + 1)
    vcpu.set_breakpoints()
    vcpu.pause()
    expect(vcpu, Reason.PAUSED)
    vcpu.run()
    assert vcpu.wait(0) is None
    vcpu.pause()
    vcpu.wait()


def test_four_breakpoints(machine: Machine) -> None:
    """None fires where the vCPU stands."""
    vcpu = machine.guest("1: nop; nop; nop; nop; jmp 1b")
    vcpu.set_breakpoints(*(Breakpoint(ORIGIN + at) for at in (3, 2, 1, 0)))
    for number in (2, 1, 0, 3, 2):
        assert hit(vcpu, number).ip == ORIGIN + 3 - number


def test_a_step_onto_a_breakpoint(machine: Machine) -> None:
    """One exit; the breakpoint does not fire there again."""
    vcpu = machine.guest("nop; nop; nop; hlt")
    vcpu.set_breakpoints(Breakpoint(ORIGIN + 1))
    vcpu.step()
    exit_ = expect(vcpu, Reason.DEBUG)
    assert exit_.ip == ORIGIN + 1
    assert stepped(vcpu).ip == ORIGIN + 2
    expect(vcpu, Reason.HLT)


def test_a_breakpoint_survives_other_exits(machine: Machine) -> None:
    vcpu = machine.guest("1: out 0x80, al; nop; jmp 1b")
    vcpu.set_breakpoints(Breakpoint(ORIGIN + 2))
    for _ in range(3):
        expect(vcpu, Reason.PORT)
        hit(vcpu, 0)
        vcpu.pause()
        expect(vcpu, Reason.PAUSED)


@proves("feature:interrupts")
def test_a_breakpoint_at_a_handler(machine: Machine) -> None:
    install(machine, "real", [IRQ])
    vcpu = machine.guest("sti; 1: hlt; jmp 1b", "real")
    handler = machine.word(4 * IRQ, 2)
    vcpu.set_breakpoints(Breakpoint(handler))
    for _ in range(2):
        expect(vcpu, Reason.HLT)
        vcpu.inject(IRQ)
        assert hit(vcpu, 0).ip == handler
        assert next_event(vcpu)[0].vector == IRQ


WATCHES = [
    pytest.param(BreakpointKind.WRITE, "mov [{at}], eax", id="write"),
    pytest.param(BreakpointKind.ACCESS, "mov [{at}], eax", id="access by a write"),
    pytest.param(BreakpointKind.ACCESS, "mov eax, [{at}]", id="access by a read"),
]


@pytest.mark.parametrize(("kind", "access"), WATCHES)
@pytest.mark.parametrize("size", [1, 2, 4])
@proves("feature:watch")
def test_a_breakpoint_on_data(
    machine: Machine, kind: BreakpointKind, access: str, size: int
) -> None:
    """Behind the access, which happened; not at a neighbour's."""
    near = f"mov [{DATA + 4}], eax; mov ebx, [{DATA - 4}]"
    before = f"mov eax, 7; {near}; {access.format(at=DATA)}"
    vcpu = machine.guest(f"{before}; hlt")
    end = ORIGIN + len(machine.load(before, at=DATA + 0x800))
    vcpu.set_breakpoints(Breakpoint(DATA, kind, size))
    assert hit(vcpu, 0).ip == end
    if "mov [" in access:
        assert machine.word(DATA) == 7
    expect(vcpu, Reason.HLT)


@proves("feature:watch")
def test_a_read_does_not_break_on_a_write(machine: Machine) -> None:
    vcpu = machine.guest(f"mov eax, [{DATA}]; hlt")
    vcpu.set_breakpoints(Breakpoint(DATA, BreakpointKind.WRITE, 4))
    expect(vcpu, Reason.HLT)
