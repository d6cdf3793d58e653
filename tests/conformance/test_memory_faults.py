"""Instruction fetches from nowhere, what an engine cannot execute, and code that changes."""

from __future__ import annotations

import pytest

from dataspace.vcpu_page import ExitFlag, Reason
from tests.conformance.claims import excuse, needs, proves
from tests.conformance.machine import DATA, HOLE, ORIGIN, PAGE, STACK, Machine, expect
from tests.guests.assemble import assemble
from vmm_client.connection import Connection

OUT = assemble("mov al, 0x5a; out 0x80, al; hlt", 32, HOLE)


@proves("exit:MEMORY_FAULT")
@pytest.mark.parametrize("into", [0, 0x123, PAGE - 1])
def test_a_jump_into_nowhere(machine: Machine, into: int) -> None:
    """At the instruction; it goes on when memory is there."""
    vcpu = machine.guest(f"mov eax, {HOLE + into}; jmp eax")
    exit_ = expect(vcpu, Reason.MEMORY_FAULT)
    assert exit_.address & -PAGE == HOLE
    assert exit_.flags & ExitFlag.FETCH
    assert not exit_.flags & ExitFlag.WRITE_PROTECTED
    assert vcpu.fetch("rip").rip == HOLE + into
    exit_ = expect(vcpu, Reason.MEMORY_FAULT)  # nothing was mended
    assert exit_.address & -PAGE == HOLE
    machine.ram.write(DATA + into, OUT)
    machine.session.attach(machine.ram, HOLE, offset=DATA, size=2 * PAGE)
    assert expect(vcpu, Reason.PORT).value == 0x5A
    expect(vcpu, Reason.HLT)


@proves("exit:MEMORY_FAULT")
def test_an_instruction_that_ends_in_nowhere(machine: Machine, client: Connection) -> None:
    """`mov eax, imm32` with two of its bytes in the page behind."""
    code = assemble(f"mov eax, 0x11223344; mov [{DATA + 0x800}], eax; hlt")
    end = HOLE + PAGE
    machine.session.attach(machine.ram, HOLE, offset=DATA + PAGE, size=PAGE)
    machine.ram.write(DATA + 2 * PAGE - 3, code[:3])
    vcpu = machine.guest(f"mov eax, {end - 3}; jmp eax")
    exit_ = expect(vcpu, Reason.MEMORY_FAULT)
    assert exit_.address & -PAGE == end
    assert exit_.flags & ExitFlag.FETCH
    registers = vcpu.fetch("rip", "rax")
    assert (registers.rip, registers.rax) == (end - 3, end - 3)
    with client.create_ram(PAGE) as more:
        more.write(0, code[3:])
        machine.session.attach(more, end)
        expect(vcpu, Reason.HLT)
        assert machine.word(DATA + 0x800) == 0x11223344


@proves("exit:MEMORY_FAULT")
def test_the_reset_vector_without_memory(machine: Machine) -> None:
    """Where every PC begins."""
    vcpu = machine.vcpu()
    exit_ = expect(vcpu, Reason.MEMORY_FAULT)
    assert exit_.address & -PAGE == 0xFFFFF000
    assert vcpu.fetch("rip").rip == 0xFFF0


@proves("exit:MEMORY_FAULT")
def test_a_faulting_vcpu_can_be_sent_elsewhere(machine: Machine) -> None:
    vcpu = machine.guest(f"hlt; mov eax, {HOLE}; jmp eax")
    vcpu.registers.rip = ORIGIN + 1
    expect(vcpu, Reason.MEMORY_FAULT)
    vcpu.registers.rip = ORIGIN
    assert expect(vcpu, Reason.HLT).ip == ORIGIN


@proves("exit:MEMORY_FAULT")
def test_code_in_read_only_memory(machine: Machine) -> None:
    machine.ram.write(DATA, OUT)
    machine.session.attach(machine.ram, HOLE, offset=DATA, size=PAGE, read_only=True)
    vcpu = machine.guest(f"mov eax, {HOLE}; jmp eax")
    assert expect(vcpu, Reason.PORT).value == 0x5A
    machine.session.detach(HOLE, PAGE)
    vcpu.registers.rip = HOLE
    vcpu.exit.complete()
    exit_ = expect(vcpu, Reason.COMPLETED)
    exit_ = expect(vcpu, Reason.MEMORY_FAULT)
    assert exit_.address & -PAGE == HOLE


# What each engine cannot execute, in a mode of its own choice.
INEXECUTABLE = {"kvm": ("protected", "popcnt eax, ebx"), "x86emu": ("real", "fninit")}


@proves("exit:INTERNAL_ERROR")
def test_an_instruction_that_the_engine_cannot_execute(machine: Machine, engine: str) -> None:
    """Its bytes are told, nothing of it was done, and the VMM can do it instead."""
    if engine not in INEXECUTABLE:
        excuse(engine, "exit:INTERNAL_ERROR", "no instruction is known that it cannot execute")
    mode, source = INEXECUTABLE[engine]
    vcpu = machine.guest(f"nop; {source}; 2: out 0x80, al; hlt", mode)
    code = machine.load(source, mode, at=DATA)
    exit_ = expect(vcpu, Reason.INTERNAL_ERROR)
    assert exit_.instruction_bytes[: len(code)] == code
    assert vcpu.fetch("rip").rip == ORIGIN + 1
    expect(vcpu, Reason.INTERNAL_ERROR)
    vcpu.registers.rip = ORIGIN + 1 + len(code)
    expect(vcpu, Reason.PORT)


@needs("exit:PORT")
def test_the_vmm_patches_code_that_ran(machine: Machine) -> None:
    """Also at the instruction that comes next, and behind a page's end."""
    at = 2 * PAGE - 2  # `mov al, imm8` ends its page
    source = "1: mov al, 1; out 0x80, al; mov bl, 2; out 0x81, al; jmp 1b"
    vcpu = machine.guest(source, at=at)
    for value in range(1, 20):
        assert expect(vcpu, Reason.PORT).value == value
        assert expect(vcpu, Reason.PORT).address == 0x81
        machine.ram.write(at + 1, bytes([value + 1]))


@needs("exit:PORT")
def test_memory_that_is_exchanged_under_code(machine: Machine) -> None:
    machine.ram.write(DATA, assemble("mov al, 1; out 0x80, al; jmp .-4", 32))
    machine.ram.write(DATA + PAGE, assemble("mov al, 2; out 0x80, al; jmp .-4", 32))
    machine.session.attach(machine.ram, HOLE, offset=DATA, size=PAGE)
    vcpu = machine.guest("nop")
    vcpu.registers.rip = HOLE
    assert expect(vcpu, Reason.PORT).value == 1
    machine.session.detach(HOLE, PAGE)
    machine.session.attach(machine.ram, HOLE, offset=DATA + PAGE, size=PAGE)
    assert expect(vcpu, Reason.PORT).value == 2


@needs("exit:PORT")
def test_a_guest_patches_its_own_code(machine: Machine) -> None:
    vcpu = machine.guest(
        """
        mov bl, 1
        1: mov al, 0; out 0x80, al
        mov [1b + 1], bl; inc bl; jmp 1b
        """
    )
    assert [expect(vcpu, Reason.PORT).value for _ in range(10)] == list(range(10))


@needs("feature:smp")
def test_another_vcpu_patches_code(machine: Machine) -> None:
    """Code that runs, in a loop that waits for the change."""
    running = machine.guest("1: mov al, 0; test al, al; jz 1b; out 0x80, al; hlt")
    patching = machine.guest(f"out 0x81, al; mov byte ptr [{ORIGIN + 1}], 7; hlt", index=1, at=DATA)
    patching.registers.rsp = STACK - 0x800
    expect(patching, Reason.PORT)
    running.run()
    expect(patching, Reason.HLT)
    exit_ = running.wait(20)
    assert exit_
    assert (exit_.reason, exit_.value) == (Reason.PORT, 7)
