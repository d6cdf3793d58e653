"""Where a vCPU stops because its VMM asked: PAUSED and COMPLETED; and replies that are refused."""

from __future__ import annotations

import threading

import pytest

from dataspace.vcpu_page import Activity, ExitFlag, Reason, ReplyFlag
from tests.conformance.claims import needs, proves
from tests.conformance.machine import DATA, HOLE, ORIGIN, PATIENCE, Machine, awaited, expect
from vmm_client.vcpu import Vcpu


@proves("exit:PAUSED")
@pytest.mark.parametrize("mode", ["real", "protected", "long", "user"])
def test_a_guest_that_never_exits(machine: Machine, mode: str) -> None:
    """From another thread; each pause is one exit, acknowledged by its number."""
    vcpu = machine.guest("1: jmp 1b", mode)
    for number in range(1, 4):
        vcpu.run()
        asker = threading.Thread(target=vcpu.pause)
        asker.start()
        awaited(vcpu, Reason.PAUSED)
        asker.join()
        assert vcpu.pauses_acknowledged == number
        assert vcpu.fetch("rip").rip == ORIGIN


@proves("exit:PAUSED")
def test_a_halted_guest(machine: Machine) -> None:
    """At the HLT; it is halted still."""
    vcpu = machine.guest("hlt")
    expect(vcpu, Reason.HLT)
    vcpu.pause()
    expect(vcpu, Reason.PAUSED)
    registers = vcpu.fetch("rip", "activity")
    assert (registers.rip, registers.activity) == (ORIGIN, Activity.HALTED)
    expect(vcpu, Reason.HLT)


@proves("exit:PAUSED")
def test_pauses_of_a_stopped_guest_are_one(machine: Machine) -> None:
    vcpu = machine.guest("hlt")
    expect(vcpu, Reason.HLT)
    for _ in range(5):
        vcpu.pause()
    expect(vcpu, Reason.PAUSED)
    assert vcpu.pauses_acknowledged == 5
    expect(vcpu, Reason.HLT)


@proves("exit:PAUSED")
def test_a_pause_in_the_middle_of_an_instruction(machine: Machine) -> None:
    """Comes behind it, with what was read."""
    vcpu = machine.guest("in al, 0x60; out 0x80, al; hlt")
    expect(vcpu, Reason.PORT).reply(0x5A)
    vcpu.pause()
    vcpu.want("rip", "rax")
    expect(vcpu, Reason.PAUSED)
    assert (vcpu.registers.rip, vcpu.registers.rax) == (ORIGIN + 2, 0x5A)
    assert expect(vcpu, Reason.PORT).value == 0x5A


@proves("exit:PAUSED")
def test_before_the_first_instruction(machine: Machine) -> None:
    vcpu = machine.vcpu()
    vcpu.pause()
    expect(vcpu, Reason.PAUSED)
    assert vcpu.fetch("rip").rip == 0xFFF0


@proves("exit:PAUSED")
def test_a_string_can_be_paused_and_goes_on(machine: Machine) -> None:
    """Whether within it or behind: no byte is lost or doubled."""
    vcpu = machine.guest(
        f"mov esi, {DATA}; mov edi, {HOLE}; mov ecx, 64; cld; rep movsb; out 0x80, al; hlt"
    )
    text = bytes(range(64))
    machine.ram.write(DATA, text)
    seen, pauses = b"", 0
    exit_ = vcpu.turn(PATIENCE)
    while exit_ and exit_.reason is not Reason.PORT:
        if exit_.reason is Reason.PAUSED:
            pauses += 1
        else:
            assert exit_.address == HOLE + len(seen)
            seen += exit_.data
            vcpu.pause()
        exit_ = vcpu.turn(PATIENCE)
    assert seen == text
    assert pauses


@proves("exit:COMPLETED")
@pytest.mark.parametrize("source", ["in al, 0x60", f"mov al, [{HOLE}]"])
def test_complete_stops_behind_the_instruction(machine: Machine, source: str) -> None:
    vcpu = machine.guest(f"{source}; out 0x80, al; hlt")
    end = ORIGIN + len(machine.load(source, at=DATA))
    exit_ = vcpu.turn(PATIENCE)
    assert exit_
    exit_.reply(0x11)
    exit_.complete()
    vcpu.want("rax", "rip")
    expect(vcpu, Reason.COMPLETED)
    assert (vcpu.registers.rax & 0xFF, vcpu.registers.rip) == (0x11, end)
    vcpu.registers.rax = 0x22
    assert expect(vcpu, Reason.PORT).value == 0x22


@proves("exit:COMPLETED")
def test_complete_behind_an_instruction_with_several_exits(machine: Machine) -> None:
    vcpu = machine.guest(f"add dword ptr [{HOLE}], 5; out 0x80, al")
    expect(vcpu, Reason.MMIO).reply(1)
    vcpu.exit.complete()
    assert expect(vcpu, Reason.MMIO).value == 6
    vcpu.exit.complete()
    expect(vcpu, Reason.COMPLETED)
    assert vcpu.fetch("rip").rip == ORIGIN + 7
    expect(vcpu, Reason.PORT)


@proves("exit:COMPLETED", "exit:PAUSED")
def test_complete_and_pause(machine: Machine) -> None:
    """Two exits at one boundary."""
    vcpu = machine.guest("in al, 0x60; hlt")
    expect(vcpu, Reason.PORT)
    vcpu.exit.complete()
    vcpu.pause()
    reasons = {expect_any(vcpu) for _ in range(2)}
    assert reasons == {Reason.COMPLETED, Reason.PAUSED}
    expect(vcpu, Reason.HLT)


def expect_any(vcpu: Vcpu) -> Reason:
    """Run to the next exit, which is right behind the IN."""
    exit_ = vcpu.turn(PATIENCE)
    assert exit_
    assert vcpu.fetch("rip").rip == ORIGIN + 2
    return exit_.reason


@proves("exit:INVALID_STATE")
def test_registers_at_a_port_are_looked_at_behind_it(machine: Machine) -> None:
    """What was read is done; the registers are not taken, and the guest goes on."""
    vcpu = machine.guest("in al, 0x60; out 0x80, al; hlt")
    expect(vcpu, Reason.PORT).reply(0xEE)
    vcpu.registers.cr0 = 0x80000010  # paging without protection: SDM vol. 3, 2.5
    expect(vcpu, Reason.INVALID_STATE)
    registers = vcpu.fetch("rip", "cr0")
    assert (registers.rip, registers.cr0) == (ORIGIN + 2, 0x11)
    assert expect(vcpu, Reason.PORT).value == 0xEE


@proves("exit:INVALID_STATE")
@needs("exit:PORT")
def test_a_fault_is_no_answer_to_a_port(machine: Machine) -> None:
    vcpu = machine.guest("in al, 0x60; out 0x80, al; hlt")
    expect(vcpu, Reason.PORT)
    vcpu.reply.set_flag(ReplyFlag.FAULT)
    exit_ = vcpu.turn(PATIENCE)
    assert exit_
    assert (exit_.reason, exit_.address, exit_.size) == (Reason.INVALID_STATE, 0x60, 1)
    assert exit_.flags & ExitFlag.READ
    exit_.reply(0x11)
    assert expect(vcpu, Reason.PORT).value == 0x11
