"""Registers as the VMM sees them: what is charged is written and nothing else, what is wanted is
delivered and nothing else."""

from __future__ import annotations

import random

import pytest

from dataspace.registers import Segment
from dataspace.vcpu_page import Activity, Reason
from tests.conformance.claims import proves
from tests.conformance.host import hardware_virtualization
from tests.conformance.machine import DATA, ORIGIN, Machine, expect
from tests.conformance.values import LONG, everything, values
from vmm_client.errors import NotValid
from vmm_client.vcpu import Vcpu


@pytest.fixture
def halted(machine: Machine) -> Vcpu:
    """At a HLT in the mode with the most registers."""
    vcpu = machine.guest("hlt", machine.widest())
    expect(vcpu, Reason.HLT)
    return vcpu


def charge(vcpu: Vcpu, **registers: int | Segment) -> None:
    """Write registers, and stop again before anything is executed."""
    vcpu.registers.update(registers)
    vcpu.pause()
    expect(vcpu, Reason.PAUSED)


@pytest.mark.parametrize("register", [pytest.param(n, marks=proves(f"register:{n}")) for n in LONG])
def test_each_alone(machine: Machine, halted: Vcpu, register: str) -> None:
    before = everything(halted)
    value = values(machine)[register]
    assert before[register] != value
    charge(halted, **{register: value})
    expected = before | {register: value}
    if register == "rip":
        expected["activity"] = Activity.ACTIVE  # the VMM's explicit advance wakes
    assert everything(halted) == expected


@pytest.mark.parametrize("seed", range(8))
def test_some_at_once(machine: Machine, halted: Vcpu, seed: int) -> None:
    """And more in the reply after it."""
    chance = random.Random(seed)
    known = values(machine)
    expected = everything(halted)
    for _ in range(2):
        chosen = chance.sample(sorted(known), chance.randrange(2, 12))
        charged = {name: known[name] for name in chosen}
        charge(halted, **charged)
        expected |= charged
        if "rip" in charged:
            expected["activity"] = Activity.ACTIVE
    assert everything(halted) == expected


def test_all_at_once(machine: Machine, halted: Vcpu) -> None:
    expected = everything(halted) | values(machine) | {"activity": Activity.ACTIVE}
    charge(halted, **values(machine))
    assert everything(halted) == expected


def test_what_is_wanted_and_no_more(halted: Vcpu) -> None:
    for wanted in ({"rax"}, {"cr0", "cs"}, {"rip", "rflags", "gdtr"}, set()):
        halted.want(*wanted)
        expect(halted, Reason.HLT)
        assert set(halted.registers) == wanted


def test_what_was_not_delivered_cannot_be_read(halted: Vcpu) -> None:
    halted.want("rax")
    expect(halted, Reason.HLT)
    with pytest.raises(NotValid):
        _ = halted.registers.rbx


def test_a_fetch_gives_this_exit_again(halted: Vcpu) -> None:
    """With registers; what was answered so far stays."""
    halted.registers.rax = 0x1234
    assert halted.fetch("rbx").rbx == 0
    assert halted.exit.reason is Reason.HLT
    assert (halted.exit.ip, halted.registers.rax) == (ORIGIN, 0x1234)
    expect(halted, Reason.HLT)
    assert halted.fetch("rax").rax == 0x1234


def test_discharged_registers_keep_the_guests_values(machine: Machine, halted: Vcpu) -> None:
    before = everything(halted)
    halted.registers.update(values(machine))
    halted.registers.discharge()
    assert halted.fetch("rbx").rbx == before["rbx"]
    halted.pause()
    expect(halted, Reason.PAUSED)
    assert everything(halted) == before


def test_one_of_many_discharged(machine: Machine, halted: Vcpu) -> None:
    chosen = {name: values(machine)[name] for name in ("rax", "rbx", "cs")}
    expected = everything(halted) | {"rbx": chosen["rbx"]}
    halted.registers.update(chosen)
    halted.registers.discharge("rax", "cs")
    halted.pause()
    expect(halted, Reason.PAUSED)
    assert everything(halted) == expected


def test_a_register_that_the_engine_has_not(machine: Machine, halted: Vcpu) -> None:
    """Is refused, names it, and changes nothing."""
    missing = sorted(set(LONG) - set(halted.engine_registers))
    if not missing:
        pytest.skip("this engine has every register")
    before = everything(halted)
    halted.registers[missing[0]] = LONG[missing[0]]
    assert expect(halted, Reason.INVALID_STATE).detail == REFUSED_REGISTERS
    assert everything(halted) == before


def test_registers_at_a_port_wait_for_its_end(machine: Machine) -> None:
    vcpu = machine.guest("in al, 0x60; out 0x80, al; out 0x81, al; hlt")
    expect(vcpu, Reason.PORT).reply(0x11)
    vcpu.registers.rax = 0x99
    assert expect(vcpu, Reason.PORT).value == 0x99
    vcpu.registers.update({"rip": ORIGIN + 6, "rbx": 7})  # skips the next out
    expect(vcpu, Reason.HLT)
    assert vcpu.fetch("rbx").rbx == 7


# ---- what no CPU takes


REFUSED_REGISTERS = 5  # enum vcpu_refusal
REFUSED: dict[str, int | Segment] = {
    "cr0": 0x80000010,  # paging without protection: SDM vol. 3, 2.5
    "cr4": 1 << 31,
    "cr8": 16,
    "efer": 1 << 20,
    "lstar": 1 << 47,  # not canonical
    "gdtr": Segment(0, 0, 0x10000, 0),
    "idtr": Segment(0, 0, 0x10000, 0),
    "xcr0": 2,  # SSE without x87: SDM vol. 1, 13.3
}


@pytest.mark.parametrize(
    "register", [pytest.param(n, marks=proves("exit:INVALID_STATE")) for n in REFUSED]
)
def test_what_no_cpu_takes_is_refused(machine: Machine, halted: Vcpu, register: str) -> None:
    """As a whole; the exit before stays to be answered."""
    machine.require(f"register:{register}")
    before = everything(halted)
    halted.registers[register] = REFUSED[register]
    exit_ = expect(halted, Reason.INVALID_STATE)
    assert exit_.detail
    assert everything(halted) == before
    expect(halted, Reason.HLT)


# ---- registers apart


@proves("register:tsc")
def test_the_time_stamp_counter_counts(machine: Machine) -> None:
    vcpu = machine.guest(f"1: rdtsc; mov [{DATA}], eax; mov [{DATA + 4}], edx; hlt; jmp 1b")
    expect(vcpu, Reason.HLT)
    seen = []
    for _ in range(3):
        seen.append(machine.word(DATA, 8))
        seen.append(vcpu.fetch("tsc").tsc)
        vcpu.registers.activity = Activity.ACTIVE
        expect(vcpu, Reason.HLT)
    assert seen == sorted(set(seen))
    assert vcpu.tsc_khz > 100_000


def counts_from_creation(vcpu: Vcpu) -> bool:
    """KVM without VMX or SVM shows guests the host's counter."""
    return vcpu.fetch("tsc").tsc < 10**11


@proves("register:tsc")
def test_the_time_stamp_counter_can_be_set(halted: Vcpu) -> None:
    if not counts_from_creation(halted):
        assert not hardware_virtualization()
        pytest.skip("without VMX or SVM, KVM shows guests the host's counter")
    charge(halted, tsc=1 << 50)
    assert 1 << 50 <= halted.fetch("tsc").tsc < (1 << 50) + 10**11


@proves("register:tsc_offset")
def test_the_offset_of_the_time_stamp_counter(halted: Vcpu) -> None:
    """It moves the counter by as much, where the host can."""
    offset, before = halted.fetch("tsc_offset").tsc_offset, halted.fetch("tsc").tsc
    charge(halted, tsc_offset=offset + (1 << 51))
    assert halted.fetch("tsc_offset").tsc_offset == offset + (1 << 51)
    charge(halted, rax=1)
    assert halted.fetch("tsc_offset").tsc_offset == offset + (1 << 51)  # not added again
    moved = halted.fetch("tsc").tsc - before
    if counts_from_creation(halted) or hardware_virtualization():
        assert 1 << 51 <= moved < (1 << 51) + 10**11


@proves("register:xss")
def test_supervisor_state_components(halted: Vcpu) -> None:
    """None is all that every CPU has; what it has not is refused."""
    charge(halted, xss=0)
    assert halted.fetch("xss").xss == 0
    halted.registers.xss = 1 << 63
    expect(halted, Reason.INVALID_STATE)
