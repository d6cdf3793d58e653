"""Interrupts, NMIs and exceptions: taken or not, told exactly, never twice and never lost."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import pytest

from dataspace.registers import Segment
from dataspace.vcpu_page import Activity, ExitFlag, Injection, Reason
from tests.conformance.claims import excuse, needs, proves
from tests.conformance.handlers import Event, awaited_event, install, next_event
from tests.conformance.host import hardware_virtualization
from tests.conformance.machine import DATA, HOLE, IDT, ORIGIN, Machine, awaited, expect
from vmm_client.vcpu import Vcpu

IRQ = 0x20
NMI, UD, GP, DF = 2, 6, 13, 8

every_mode = pytest.mark.parametrize("mode", ["real", "protected", "long"])


def at_hlt(machine: Machine, source: str, mode: str = "real", *, interrupts: bool) -> Vcpu:
    """A guest with handlers, stopped at the HLT at its beginning; `source` follows behind it."""
    install(machine, mode, [IRQ, IRQ + 1, NMI, UD, GP, DF])
    vcpu = machine.guest(f"hlt; {source}", mode)
    vcpu.registers.rflags = 0x202 if interrupts else 2
    expect(vcpu, Reason.HLT)
    return vcpu


@every_mode
@proves("feature:interrupts", "register:interruptibility", "register:idtr")
def test_an_interrupt_wakes_from_hlt(machine: Machine, mode: str) -> None:
    """And returns behind it."""
    vcpu = at_hlt(machine, "out 0x80, al; cli; hlt", mode, interrupts=True)
    assert vcpu.exit.interruptible
    vcpu.inject(IRQ)
    assert next_event(vcpu) == (Event(IRQ, ORIGIN + 1), Injection.TAKEN)
    exit_ = expect(vcpu, Reason.PORT)
    assert (exit_.address, exit_.injection) == (0x80, Injection.NONE)
    assert not expect(vcpu, Reason.HLT).interruptible


@every_mode
@proves("feature:interrupts")
def test_an_interrupt_is_not_taken_with_the_flag_clear(machine: Machine, mode: str) -> None:
    """It is forgotten: not delivered later either."""
    vcpu = at_hlt(machine, "out 0x80, al; sti; nop; nop; out 0x81, al; hlt", mode, interrupts=False)
    vcpu.registers.activity = Activity.ACTIVE
    vcpu.inject(IRQ)
    exit_ = expect(vcpu, Reason.PORT)
    assert (exit_.address, exit_.injection) == (0x80, Injection.NOT_TAKEN)
    exit_ = expect(vcpu, Reason.PORT)
    assert (exit_.address, exit_.injection) == (0x81, Injection.NONE)
    expect(vcpu, Reason.HLT)


@proves("feature:interrupts")
def test_an_interrupt_that_is_not_taken_does_not_wake(machine: Machine) -> None:
    vcpu = at_hlt(machine, "out 0x80, al", interrupts=False)
    vcpu.inject(IRQ)
    assert expect(vcpu, Reason.HLT).injection is Injection.NOT_TAKEN
    assert expect(vcpu, Reason.HLT).injection is Injection.NONE


@proves("feature:interrupts")
def test_an_interrupt_in_the_middle_of_an_instruction(machine: Machine) -> None:
    """Comes behind it, with what was read and charged."""
    vcpu = at_hlt(machine, "in al, 0x60; out 0x80, al; out 0x81, al; hlt", interrupts=True)
    vcpu.registers.activity = Activity.ACTIVE
    expect(vcpu, Reason.PORT).reply(0x42)
    vcpu.inject(IRQ)
    assert next_event(vcpu) == (Event(IRQ, ORIGIN + 3), Injection.TAKEN)
    assert expect(vcpu, Reason.PORT).value == 0x42
    vcpu.registers.rax = 0x77
    vcpu.inject(IRQ + 1)
    assert next_event(vcpu) == (Event(IRQ + 1, ORIGIN + 5), Injection.TAKEN)
    assert expect(vcpu, Reason.PORT).value == 0x77


@proves("feature:interrupts")
def test_the_flags_charged_with_an_injection_count(machine: Machine) -> None:
    vcpu = at_hlt(machine, "hlt", interrupts=False)
    vcpu.registers.rflags = 0x202
    vcpu.inject(IRQ)
    assert next_event(vcpu) == (Event(IRQ, ORIGIN + 1), Injection.TAKEN)
    expect(vcpu, Reason.HLT)
    vcpu.registers.rflags = 2
    vcpu.inject(IRQ)
    assert expect(vcpu, Reason.HLT).injection is Injection.NOT_TAKEN


@pytest.mark.parametrize("shadow", [1, 2], ids=["sti", "mov ss"])
@proves("feature:interrupts", "register:interruptibility")
def test_no_interrupt_in_a_charged_shadow(machine: Machine, shadow: int) -> None:
    """The next instruction comes first; then the shadow is over."""
    vcpu = at_hlt(machine, "out 0x80, al; out 0x81, al; hlt", interrupts=True)
    vcpu.registers.update({"interruptibility": shadow, "activity": Activity.ACTIVE})
    vcpu.inject(IRQ)
    exit_ = expect(vcpu, Reason.PORT)
    assert (exit_.address, exit_.injection) == (0x80, Injection.NOT_TAKEN)
    vcpu.inject(IRQ)
    assert next_event(vcpu) == (Event(IRQ, ORIGIN + 3), Injection.TAKEN)


@proves("feature:interrupts")
def test_no_interrupt_in_the_shadow_of_mov_ss(machine: Machine) -> None:
    """Injected while MOV SS reads a device; the shadow begins at its end."""
    vcpu = at_hlt(machine, "mov ss, [0]; out 0x80, al; hlt", interrupts=True)
    vcpu.registers.update(
        {"ds": Segment(0xA000, 0x93, 0xFFFF, 0xA0000), "activity": Activity.ACTIVE}
    )
    expect(vcpu, Reason.MMIO).reply(0)
    vcpu.inject(IRQ)
    exit_ = expect(vcpu, Reason.PORT)
    assert (exit_.address, exit_.injection) == (0x80, Injection.NOT_TAKEN)
    vcpu.inject(IRQ)
    assert next_event(vcpu)[1] is Injection.TAKEN


@proves("feature:interrupts")
@needs("feature:debug")
def test_no_interrupt_in_the_shadow_of_sti(machine: Machine) -> None:
    vcpu = at_hlt(machine, "sti; nop; nop; hlt", interrupts=False)
    vcpu.registers.activity = Activity.ACTIVE
    vcpu.step()
    exit_ = expect(vcpu, Reason.DEBUG)
    assert (exit_.ip, exit_.interrupts_enabled, exit_.interruptible) == (ORIGIN + 2, True, False)
    vcpu.inject(IRQ)
    vcpu.step()
    exit_ = expect(vcpu, Reason.DEBUG)
    assert (exit_.ip, exit_.injection, exit_.interruptible) == (
        ORIGIN + 3,
        Injection.NOT_TAKEN,
        True,
    )
    vcpu.inject(IRQ)
    assert next_event(vcpu) == (Event(IRQ, ORIGIN + 3), Injection.TAKEN)


@proves("exit:WINDOW")
def test_a_window_opens_behind_the_shadow_of_sti(machine: Machine) -> None:
    vcpu = at_hlt(machine, "out 0x80, al; nop; out 0x81, al; sti; nop; 1: jmp 1b", interrupts=False)
    vcpu.registers.activity = Activity.ACTIVE
    expect(vcpu, Reason.PORT)
    vcpu.request_window()
    assert expect(vcpu, Reason.PORT).address == 0x81
    exit_ = expect(vcpu, Reason.WINDOW)
    assert exit_.interruptible
    assert vcpu.fetch("rip").rip == ORIGIN + 8  # behind the nop
    vcpu.inject(IRQ)
    assert next_event(vcpu) == (Event(IRQ, ORIGIN + 8), Injection.TAKEN)


def requests_from_elsewhere(request: Callable[[], int]) -> None:
    """Call it in a thread of its own."""
    thread = threading.Thread(target=request)
    thread.start()
    thread.join()


@proves("exit:WINDOW")
def test_a_window_of_a_running_guest(machine: Machine) -> None:
    vcpu = machine.guest("sti; 1: jmp 1b")
    vcpu.run()
    requests_from_elsewhere(vcpu.request_window)
    awaited(vcpu, Reason.WINDOW)
    vcpu.pause()
    expect(vcpu, Reason.PAUSED)  # it was one window


@proves("exit:WINDOW")
def test_a_window_of_a_halted_guest(machine: Machine) -> None:
    vcpu = at_hlt(machine, "cli; hlt", interrupts=True)
    requests_from_elsewhere(vcpu.request_window)
    expect(vcpu, Reason.WINDOW)
    expect(vcpu, Reason.HLT)
    vcpu.registers.activity = Activity.ACTIVE
    expect(vcpu, Reason.HLT)
    vcpu.request_window()
    expect(vcpu, Reason.HLT)  # the flag is clear
    vcpu.withdraw_window()
    vcpu.registers.rflags = 0x202
    expect(vcpu, Reason.HLT)  # nobody asks any more


@proves("exit:WINDOW")
@needs("feature:interrupts")
def test_an_injection_does_not_use_up_the_window(machine: Machine) -> None:
    vcpu = at_hlt(machine, "1: jmp 1b", interrupts=True)
    vcpu.request_window()
    vcpu.inject(IRQ)
    assert next_event(vcpu)[1] is Injection.TAKEN
    expect(vcpu, Reason.WINDOW)


@pytest.mark.parametrize("mode", ["real", "long"])
@proves("feature:nmi")
def test_an_nmi_needs_no_flag(machine: Machine, mode: str) -> None:
    vcpu = at_hlt(machine, "out 0x80, al; hlt", mode, interrupts=False)
    vcpu.inject_nmi()
    assert next_event(vcpu) == (Event(NMI, ORIGIN + 1), Injection.TAKEN)
    assert expect(vcpu, Reason.PORT).address == 0x80
    expect(vcpu, Reason.HLT)


@pytest.mark.parametrize("mode", ["real", "long"])
@proves("feature:nmi")
def test_nmis_in_the_handler_wait_for_its_end(machine: Machine, mode: str) -> None:
    """One does: a CPU keeps no more. How soon after IRET it comes is the engine's choice."""
    vcpu = at_hlt(machine, "nop; 1: hlt; jmp 1b", mode, interrupts=False)
    vcpu.inject_nmi()
    assert next_event(vcpu) == (Event(NMI, ORIGIN + 1), Injection.TAKEN)
    vcpu.inject_nmi()
    event, result = next_event(vcpu)
    assert (event.vector, result) == (NMI, Injection.TAKEN)
    for _ in range(2):
        assert expect(vcpu, Reason.HLT).ip == ORIGIN + 2


@proves("exit:NMI_WINDOW")
@needs("feature:nmi")
def test_the_nmi_window_opens_behind_iret(machine: Machine) -> None:
    vcpu = at_hlt(machine, "out 0x80, al; hlt", interrupts=False)
    assert vcpu.exit.flags & ExitFlag.NMI_OPEN
    vcpu.inject_nmi()
    assert next_event(vcpu)[0].vector == NMI
    assert not vcpu.exit.flags & ExitFlag.NMI_OPEN
    vcpu.request_nmi_window()
    exit_ = expect(vcpu, Reason.NMI_WINDOW)
    assert exit_.flags & ExitFlag.NMI_OPEN
    assert vcpu.fetch("rip").rip == ORIGIN + 1
    assert expect(vcpu, Reason.PORT).address == 0x80


@proves("exit:NMI_WINDOW")
def test_an_open_nmi_window_comes_at_once(machine: Machine) -> None:
    """And once; withdrawn, it does not come."""
    vcpu = at_hlt(machine, "hlt", interrupts=False)
    vcpu.request_nmi_window()
    expect(vcpu, Reason.NMI_WINDOW)
    expect(vcpu, Reason.HLT)


@every_mode
@proves("feature:exceptions")
def test_an_exception_is_always_taken(machine: Machine, mode: str) -> None:
    vcpu = at_hlt(machine, "out 0x80, al; hlt", mode, interrupts=False)
    vcpu.registers.activity = Activity.ACTIVE
    vcpu.inject_exception(UD)
    assert next_event(vcpu) == (Event(UD, ORIGIN + 1), Injection.TAKEN)
    assert expect(vcpu, Reason.PORT).address == 0x80


@pytest.mark.parametrize("mode", ["protected", "long"])
@proves("feature:exceptions")
def test_an_exception_with_an_error_code(machine: Machine, mode: str) -> None:
    vcpu = at_hlt(machine, "out 0x80, al; hlt", mode, interrupts=False)
    vcpu.registers.activity = Activity.ACTIVE
    vcpu.inject_exception(GP, 0x18)
    assert next_event(vcpu) == (Event(GP, ORIGIN + 1, 0x18), Injection.TAKEN)
    assert expect(vcpu, Reason.PORT).address == 0x80


@pytest.mark.parametrize("mode", ["protected", "long"])
@proves("feature:interrupts", "register:idtr")
def test_a_vector_beyond_the_table_is_gp(machine: Machine, mode: str) -> None:
    """SDM vol. 3, 6.13: the error code is the vector, in the IDT, from outside the program. KVM's
    emulator leaves that last bit clear."""
    vcpu = at_hlt(machine, "out 0x80, al; cli; hlt", mode, interrupts=True)
    vcpu.registers.idtr = Segment(0, 0, 0x1F * (8 if mode == "protected" else 16), IDT)
    vcpu.inject(IRQ)
    event, result = next_event(vcpu)
    assert event.error is not None
    assert (event.vector, event.error | 1, result) == (GP, IRQ * 8 + 3, Injection.TAKEN)
    exit_ = expect(vcpu, Reason.PORT)
    assert (exit_.address, exit_.injection) == (0x80, Injection.NONE)
    expect(vcpu, Reason.HLT)


@pytest.mark.parametrize("mode", ["protected", "long"])
@proves("feature:interrupts", "exit:SHUTDOWN")
def test_no_table_at_all_is_a_triple_fault(machine: Machine, mode: str) -> None:
    vcpu = at_hlt(machine, "hlt", mode, interrupts=True)
    vcpu.registers.idtr = Segment(0, 0, 0, 0)
    vcpu.inject(IRQ)
    assert expect(vcpu, Reason.SHUTDOWN).injection is Injection.TAKEN
    assert expect(vcpu, Reason.SHUTDOWN).injection is Injection.NONE


ORDERS = list(itertools.permutations(("pause", "inject", "window")))


@pytest.mark.parametrize("order", ORDERS, ids="-then-".join)
@proves("exit:PAUSED", "exit:WINDOW", "feature:interrupts")
def test_pause_and_injection_and_window_at_hlt(machine: Machine, order: tuple[str, ...]) -> None:
    """Whatever the order: each of them once, and the guest is halted again."""
    vcpu = at_hlt(machine, "1: hlt; jmp 1b", interrupts=True)
    for action in order:
        {
            "pause": vcpu.pause,
            "inject": lambda: vcpu.inject(IRQ),
            "window": vcpu.request_window,
        }[action]()
    reasons, results, vectors = [], [], []
    for _ in range(8):
        exit_ = vcpu.turn()
        assert exit_
        reasons.append(exit_.reason)
        results.append(exit_.injection)
        if exit_.reason is Reason.PORT and exit_.address == 0x90:
            vectors.append(exit_.value)
    assert reasons.count(Reason.PAUSED) == 1
    assert reasons.count(Reason.WINDOW) == 1
    assert reasons.count(Reason.PORT) == 2
    assert reasons[-1] is Reason.HLT
    assert results.count(Injection.TAKEN) == 1
    assert Injection.NOT_TAKEN not in results
    assert vectors == [IRQ]


@proves("feature:interrupts")
def test_every_interrupt_is_counted_once(machine: Machine) -> None:
    """By a handler that makes no exits; pauses come between."""
    vcpu = machine.guest(
        f"""
        jmp 2f
        1: inc word ptr [{DATA}]; iret
        2: mov word ptr [4 * {IRQ}], offset 1b; mov word ptr [4 * {IRQ} + 2], 0
        sti
        3: hlt; jmp 3b
        """,
        "real",
    )
    taken = 0
    for number in range(100):
        expect(vcpu, Reason.HLT)
        vcpu.inject(IRQ)
        if number % 3 == 0:
            vcpu.pause()
            assert expect(vcpu, Reason.PAUSED).injection is Injection.TAKEN
            taken += 1
            assert expect(vcpu, Reason.HLT).injection is Injection.NONE
        else:
            assert expect(vcpu, Reason.HLT).injection is Injection.TAKEN
            taken += 1
    assert machine.word(DATA, 2) == taken == 100


@proves("feature:interrupts", "exit:WINDOW")
def test_a_running_guest_is_interrupted_through_windows(machine: Machine) -> None:
    vcpu = at_hlt(machine, "1: jmp 1b", interrupts=True)
    vcpu.registers.activity = Activity.ACTIVE
    vcpu.run()
    for _ in range(5):
        requests_from_elsewhere(vcpu.request_window)
        awaited(vcpu, Reason.WINDOW)
        vcpu.inject(IRQ)
        vcpu.run()
        event, result = awaited_event(vcpu)
        assert (event.vector, event.ip, result) == (IRQ, ORIGIN + 1, Injection.TAKEN)
        vcpu.run()


@proves("feature:interrupts")
def test_an_interrupt_at_a_device_access(machine: Machine) -> None:
    vcpu = at_hlt(
        machine, f"mov eax, [{HOLE}]; mov [{DATA}], eax; hlt", "protected", interrupts=True
    )
    vcpu.registers.activity = Activity.ACTIVE
    expect(vcpu, Reason.MMIO).reply(0x1234)
    vcpu.inject(IRQ)
    assert next_event(vcpu)[1] is Injection.TAKEN
    expect(vcpu, Reason.HLT)
    assert machine.word(DATA) == 0x1234


@proves("exit:TPR", "register:cr8")
def test_a_lowered_task_priority_is_told(machine: Machine, engine: str) -> None:
    if engine == "kvm" and not hardware_virtualization():
        excuse(engine, "exit:TPR", "without VMX or SVM, KVM emulates MOV CR8 and tells nobody")
    vcpu = machine.guest("mov eax, 3; mov cr8, rax; hlt", "long")
    vcpu.registers.cr8 = 9
    assert expect(vcpu, Reason.TPR).value == 3
    expect(vcpu, Reason.HLT)
    assert vcpu.fetch("cr8").cr8 == 3
