"""Several processors: INIT and SIPI by a VMM that plays the local APIC, and vCPUs that run at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from dataspace.vcpu_page import Activity, Injection, Reason
from tests.conformance.claims import needs, proves
from tests.conformance.machine import DATA, ORIGIN, PATIENCE, STACK, Machine, awaited, expect
from vmm_client.entrypoint import Entrypoint
from vmm_client.exits import Exit
from vmm_client.vcpu import Vcpu

TRAMPOLINE: Final = 0x2000
COMMAND: Final = 0xFEE00300  # interrupt command register, low half: SDM vol. 3, 10.6.1
TARGET: Final = 0xFEE00310
INIT, SIPI = 0x4500, 0x4600
VECTOR: Final = TRAMPOLINE >> 12


@pytest.fixture
def waiting(machine: Machine) -> Vcpu:
    """A vCPU after INIT, running: it waits for SIPI."""
    machine.load("mov word ptr cs:[0x800], 0x1234; hlt", "real", at=TRAMPOLINE)
    vcpu = machine.vcpu()
    vcpu.registers.init()
    vcpu.run()
    return vcpu


@proves("register:activity")
def test_it_waits_until_it_is_paused(machine: Machine, waiting: Vcpu) -> None:
    waiting.pause()
    awaited(waiting, Reason.PAUSED)
    registers = waiting.fetch("activity", "rip", "cs")
    assert registers.activity == Activity.WAIT_FOR_SIPI
    assert (registers.rip, registers.cs.base) == (0xFFF0, 0xFFFF0000)
    waiting.pause()
    expect(waiting, Reason.PAUSED)


@needs("feature:cpuid")
def test_edx_has_the_signature_that_cpuid_tells(machine: Machine, waiting: Vcpu) -> None:
    waiting.pause()
    awaited(waiting, Reason.PAUSED)
    (signature,) = (leaf.eax for leaf in waiting.cpuid() if leaf.function == 1)
    registers = waiting.fetch("rdx", "cr0")
    assert (registers.rdx, registers.cr0) == (signature, 0x60000010)


@proves("register:activity")
def test_sipi_starts_it(machine: Machine, waiting: Vcpu) -> None:
    """In real mode, at its vector times 4096."""
    waiting.pause()
    awaited(waiting, Reason.PAUSED)
    waiting.registers.start_up(VECTOR)
    exit_ = expect(waiting, Reason.HLT)
    assert exit_.ip == 7
    assert machine.word(TRAMPOLINE + 0x800, 2) == 0x1234
    registers = waiting.fetch("cs", "activity")
    assert (registers.cs.selector, registers.cs.base) == (VECTOR << 8, TRAMPOLINE)


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(lambda vcpu: vcpu.inject(0x20), marks=needs("feature:interrupts"), id="irq"),
        pytest.param(lambda vcpu: vcpu.inject_nmi(), marks=needs("feature:nmi"), id="nmi"),
    ],
)
def test_nothing_wakes_it_but_sipi(
    machine: Machine, waiting: Vcpu, event: Callable[[Vcpu], None]
) -> None:
    """An event is not taken, and does not come after SIPI either."""
    waiting.pause()
    awaited(waiting, Reason.PAUSED)
    waiting.registers.rflags = 0x202
    event(waiting)
    waiting.pause()
    assert expect(waiting, Reason.PAUSED).injection is Injection.NOT_TAKEN
    waiting.registers.start_up(VECTOR)
    assert expect(waiting, Reason.HLT).injection is Injection.NONE


@needs("exit:WINDOW")
def test_no_window_opens(waiting: Vcpu) -> None:
    waiting.request_window()
    waiting.pause()
    awaited(waiting, Reason.PAUSED)
    assert not waiting.exit.interruptible


@needs("register:activity")
def test_a_running_vcpu_takes_init(machine: Machine) -> None:
    """Whatever it does; SIPI starts it anew."""
    machine.load("hlt", "real", at=TRAMPOLINE)
    vcpu = machine.guest("mov eax, 0x1234; 1: jmp 1b")
    vcpu.run()
    vcpu.pause()
    awaited(vcpu, Reason.PAUSED)
    vcpu.registers.init()
    vcpu.run()
    vcpu.pause()
    awaited(vcpu, Reason.PAUSED)
    assert vcpu.fetch("rax").rax == 0
    vcpu.registers.start_up(VECTOR)
    assert expect(vcpu, Reason.HLT).ip == 0


# The first processor starts the others one by one; each adds itself, and halts.
FIRST = f"""
    mov ebx, 1
    1: mov eax, ebx; shl eax, 24; mov [{TARGET}], eax
    mov dword ptr [{COMMAND}], {INIT}
    mov dword ptr [{COMMAND}], {SIPI | VECTOR}
    2: cmp [{DATA}], ebx; jne 2b
    inc ebx; cmp ebx, 4; jne 1b
    out 0x80, al; hlt
"""
OTHER = "mov ax, 0; mov ds, ax; lock inc dword ptr ds:[0x4000]; hlt"


class Apics:
    """The VMM's half of INIT and SIPI: processors that wait, and the one that is meant."""

    def __init__(self, vcpus: list[Vcpu]) -> None:
        self.vcpus = vcpus
        self.target = 0

    def write(self, exit_: Exit) -> None:
        if exit_.address == TARGET:
            self.target = exit_.value >> 24
        elif exit_.value & 0x700 == SIPI & 0x700:
            vcpu = self.vcpus[self.target]
            vcpu.registers.start_up(exit_.value & 0xFF)
            vcpu.run()


@needs("feature:smp")
def test_processors_start_each_other(machine: Machine) -> None:
    """By commands of the guest, served by one thread."""
    machine.load(OTHER, "real", at=TRAMPOLINE)
    vcpus = [machine.unstarted(index) for index in range(4)]
    apics = Apics(vcpus)
    halted: set[str] = set()
    for vcpu, exit_ in Entrypoint(vcpus).exits():
        if exit_.reason is Reason.STARTUP:
            if vcpu is vcpus[0]:
                machine.load(FIRST)
                machine.enter(vcpu, "protected")
                vcpu.stay()
            else:
                vcpu.registers.init()
                vcpu.stay()
            if all(each.staying for each in vcpus):
                vcpus[0].run()
        elif exit_.reason is Reason.MMIO:
            apics.write(exit_)
        elif exit_.reason is Reason.HLT:
            halted.add(vcpu.name)
            vcpu.stay()
            if len(halted) == 4:
                break
        else:
            assert (exit_.reason, exit_.address) == (Reason.PORT, 0x80), exit_
    assert machine.word(DATA) == 3


@proves("feature:smp")
@pytest.mark.parametrize("count", [2, 4])
def test_locked_instructions_are_exact(machine: Machine, count: int) -> None:
    vcpus = []
    for index in range(count):
        vcpu = machine.guest(
            f"mov ecx, 1000; 1: lock inc dword ptr [{DATA}]; loop 1b; hlt", index=index
        )
        vcpu.registers.rsp = STACK - 0x200 * index
        vcpus.append(vcpu)
    for vcpu in vcpus:
        vcpu.run()
    for vcpu in vcpus:
        awaited(vcpu, Reason.HLT)
    assert machine.word(DATA) == 1000 * count


@proves("feature:smp", "feature:parallel")
def test_vcpus_run_at_the_same_time(machine: Machine) -> None:
    """Each waits for the other, a thousand times."""
    answer = machine.guest(
        f"xor ecx, ecx; 1: inc ecx; 2: cmp [{DATA}], ecx; jne 2b; mov [{DATA + 4}], ecx;"
        "cmp ecx, 1000; jne 1b; hlt"
    )
    ask = machine.guest(
        f"xor ecx, ecx; 1: inc ecx; mov [{DATA}], ecx; 2: cmp [{DATA + 4}], ecx; jne 2b;"
        "cmp ecx, 1000; jne 1b; hlt",
        index=1,
        at=ORIGIN + 0x800,
    )
    answer.run()
    ask.run()
    for vcpu in (answer, ask):
        exit_ = vcpu.wait(PATIENCE)
        assert exit_
        assert exit_.reason is Reason.HLT


@proves("feature:smp")
def test_processors_have_registers_of_their_own(machine: Machine) -> None:
    vcpus = [machine.guest("hlt", index=index) for index in range(4)]
    for index, vcpu in enumerate(vcpus):
        vcpu.registers.update({"rax": index, "cr2": 0x1000 * index, "dr0": 0x100 * index})
    for vcpu in vcpus:
        expect(vcpu, Reason.HLT)
    for index, vcpu in enumerate(vcpus):
        registers = vcpu.fetch("rax", "cr2", "dr0")
        assert (registers.rax, registers.cr2, registers.dr0) == (
            index,
            0x1000 * index,
            0x100 * index,
        )
