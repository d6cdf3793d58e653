"""STARTUP, HLT and SHUTDOWN: where a vCPU executes nothing."""

from __future__ import annotations

import pytest

from dataspace.registers import Segment
from dataspace.vcpu_page import Activity, ExitFlag, Reason
from tests.conformance.claims import needs, proves
from tests.conformance.machine import FLAT_CODE, ORIGIN, Machine, expect

NOTHING = Segment(0, 0, 0, 0)


@proves("exit:STARTUP")
def test_startup_tells_the_reset_state(machine: Machine) -> None:
    """SDM vol. 3, table 10-1; all registers that the engine claims come with it."""
    registers = machine.vcpu().registers
    assert set(registers) == {
        claim.removeprefix("register:") for claim in machine.claims if "register:" in claim
    }
    assert registers.cs == Segment(0xF000, registers.cs.attributes, 0xFFFF, 0xFFFF0000)
    assert (registers.rip, registers.rflags) == (0xFFF0, 2)
    assert registers.cr0 & ~0x60000000 == 0x10  # CD and NW are a machine's own
    for name in ("ds", "es", "ss", "fs", "gs"):
        segment = registers[name]
        assert isinstance(segment, Segment)
        assert (segment.selector, segment.base, segment.limit) == (0, 0, 0xFFFF)
    assert (registers.gdtr.base, registers.gdtr.limit) == (0, 0xFFFF)
    assert (registers.idtr.base, registers.idtr.limit) == (0, 0xFFFF)
    assert registers.rdx & ~0xFFFFF == 0  # the processor's signature


@proves("exit:STARTUP")
def test_nothing_is_executed_before_startup(machine: Machine) -> None:
    machine.load("mov dword ptr [0x4000], 1; hlt", "real")
    vcpu = machine.vcpu()
    assert machine.word(0x4000) == 0
    machine.enter(vcpu, "real")
    expect(vcpu, Reason.HLT)
    assert machine.word(0x4000) == 1


@proves("exit:HLT", "register:activity")
def test_hlt_stands_at_the_instruction(machine: Machine) -> None:
    vcpu = machine.guest("nop; hlt")
    exit_ = expect(vcpu, Reason.HLT)
    assert (exit_.ip, exit_.instruction_length) == (ORIGIN + 1, 1)
    registers = vcpu.fetch("rip", "activity")
    assert (registers.rip, registers.activity) == (ORIGIN + 1, Activity.HALTED)


@proves("exit:HLT")
def test_hlt_with_a_prefix(machine: Machine) -> None:
    """It is left as a whole; an engine may count the prefix or not."""
    vcpu = machine.guest(".byte 0x66; hlt; out 0x80, al; hlt")
    exit_ = expect(vcpu, Reason.HLT)
    assert exit_.ip is not None
    assert exit_.ip + exit_.instruction_length == ORIGIN + 2
    vcpu.registers.activity = Activity.ACTIVE
    expect(vcpu, Reason.PORT)


@proves("exit:HLT")
def test_hlt_repeats_until_something_wakes(machine: Machine) -> None:
    vcpu = machine.guest("hlt; out 0x80, al; hlt")
    for _ in range(3):
        assert expect(vcpu, Reason.HLT).ip == ORIGIN
    vcpu.registers.rax = 0x12  # is no reason to wake
    assert expect(vcpu, Reason.HLT).ip == ORIGIN
    vcpu.registers.rip = ORIGIN + 1
    assert expect(vcpu, Reason.PORT).value == 0x12
    assert expect(vcpu, Reason.HLT).ip == ORIGIN + 3


@proves("register:activity")
def test_active_wakes_behind_the_hlt(machine: Machine) -> None:
    vcpu = machine.guest("hlt; out 0x80, al; hlt")
    expect(vcpu, Reason.HLT)
    vcpu.registers.activity = Activity.ACTIVE
    expect(vcpu, Reason.PORT)


@proves("register:activity")
def test_halted_can_be_restored(machine: Machine) -> None:
    """As after a migration: rip at the HLT, activity HALTED; it wakes behind it."""
    vcpu = machine.guest("nop; hlt; out 0x80, al; hlt")
    vcpu.registers.update({"rip": ORIGIN + 1, "activity": Activity.HALTED})
    assert expect(vcpu, Reason.HLT).ip == ORIGIN + 1
    vcpu.registers.activity = Activity.ACTIVE
    expect(vcpu, Reason.PORT)


@proves("exit:SHUTDOWN", "register:activity")
@pytest.mark.parametrize("mode", ["protected", "long"])
def test_a_triple_fault_shuts_down(machine: Machine, mode: str) -> None:
    """It stays shut down until the VMM makes it active, with new registers."""
    vcpu = machine.guest("ud2; hlt", mode)
    vcpu.registers.idtr = NOTHING
    expect(vcpu, Reason.SHUTDOWN)
    assert expect(vcpu, Reason.SHUTDOWN).injection == 0
    assert vcpu.fetch("activity").activity == Activity.SHUTDOWN
    vcpu.registers.update({"rip": ORIGIN + 2, "activity": Activity.ACTIVE})
    assert expect(vcpu, Reason.HLT).ip == ORIGIN + 2


@needs("exit:SHUTDOWN")
@proves("exit:PAUSED")
def test_what_is_shut_down_can_be_paused(machine: Machine) -> None:
    vcpu = machine.guest("ud2")
    vcpu.registers.idtr = NOTHING
    expect(vcpu, Reason.SHUTDOWN)
    vcpu.pause()
    expect(vcpu, Reason.PAUSED)
    expect(vcpu, Reason.SHUTDOWN)


@proves("exit:HLT", "register:rflags")
@pytest.mark.parametrize("enabled", [False, True])
def test_the_interrupt_flag_is_told(machine: Machine, enabled: bool) -> None:
    vcpu = machine.guest(f"{'sti' if enabled else 'cli'}; nop; hlt")
    exit_ = expect(vcpu, Reason.HLT)
    assert exit_.interrupts_enabled == enabled
    assert bool(exit_.flags & ExitFlag.INTERRUPTIBLE) == enabled
    assert bool(vcpu.fetch("rflags").rflags & 0x200) == enabled


@proves("register:cs")
def test_the_code_segment_decides_how_code_is_read(machine: Machine) -> None:
    """66 b8 is `mov eax, imm32` in 16 bits and `mov ax, imm16` in 32."""
    vcpu = machine.guest(".byte 0x66, 0xb8, 0x34, 0x12; .byte 0x00, 0xf4, 0xf4")
    vcpu.registers.cs = Segment(0x20, 0x9B, 0xFFFF, 0)
    assert expect(vcpu, Reason.HLT).ip == ORIGIN + 6
    assert vcpu.fetch("rax").rax == 0xF4001234
    vcpu.registers.update({"cs": FLAT_CODE, "rip": ORIGIN, "rax": 0})
    machine.load(".byte 0x66, 0xb8, 0x34, 0x12, 0xf4")
    assert expect(vcpu, Reason.HLT).ip == ORIGIN + 4
    assert vcpu.fetch("rax").rax == 0x1234
