"""What the guest may believe of its CPU, and how the VMM decides it."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from dataspace.vcpu_page import Activity, Reason
from tests.conformance.claims import needs, proves
from tests.conformance.machine import Machine, expect
from vmm_client.cpuid import CpuidLeaf
from vmm_client.errors import Refused
from vmm_client.vcpu import Vcpu

SOURCE = "1: cpuid; hlt; jmp 1b"
Answer = tuple[int, ...]


def asked(vcpu: Vcpu, function: int, index: int = 0) -> Answer:
    """What the guest gets: eax, ebx, ecx and edx."""
    vcpu.registers.update({"rax": function, "rcx": index})
    if vcpu.exit.reason is Reason.HLT:
        vcpu.registers.activity = Activity.ACTIVE
    expect(vcpu, Reason.HLT)
    registers = vcpu.fetch("rax", "rbx", "rcx", "rdx")
    return registers.rax, registers.rbx, registers.rcx, registers.rdx


def made(machine: Machine, without: Collection[int] = (), *more: CpuidLeaf) -> Vcpu:
    """A vCPU about to execute CPUID, with some leaves taken out of its table and others added."""
    vcpu = machine.unstarted()
    if without or more:
        kept = [leaf for leaf in vcpu.cpuid() if leaf.function not in without]
        vcpu.set_cpuid([*kept, *more])
    machine.load(SOURCE)
    expect(vcpu, Reason.STARTUP)
    return machine.enter(vcpu, "protected")


HYPERVISOR = range(0x40000000, 0x40010000)


@proves("feature:cpuid")
def test_the_table_is_what_the_guest_gets(machine: Machine) -> None:
    """But for what a CPU computes: OSXSAVE, OSPKE, leaf 0xd EBX, the APIC's id and topology."""
    vcpu = machine.unstarted()
    leaves = vcpu.cpuid()
    assert len({(leaf.function, leaf.index) for leaf in leaves}) == len(leaves)
    machine.load(SOURCE)
    expect(vcpu, Reason.STARTUP)
    machine.enter(vcpu, "protected")
    computed = {1, 7, 0xD, 0xB, 0x1F}
    compared = [leaf for leaf in leaves if leaf.function not in computed]
    assert compared
    for leaf in compared:
        answer = (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx)
        assert asked(vcpu, leaf.function, leaf.index or 0) == answer, leaf


@proves("feature:cpuid")
def test_a_leaf_of_the_vmm(machine: Machine) -> None:
    first = CpuidLeaf(0x40000000, None, 0x40000001, 0x11111111, 0x22222222, 0x33333333)
    vcpu = made(machine, HYPERVISOR, first, CpuidLeaf(0x40000001, None, 1, 2, 3, 4))
    assert asked(vcpu, 0x40000000) == (0x40000001, 0x11111111, 0x22222222, 0x33333333)
    assert asked(vcpu, 0x40000001) == (1, 2, 3, 4)


@proves("feature:cpuid")
def test_subleaves(machine: Machine) -> None:
    """By ECX; one that is not there is zero."""
    highest = CpuidLeaf(0, None, 4, 0, 0, 0)
    caches = [CpuidLeaf(4, index, 0x100 + index, index, 0, 0) for index in range(3)]
    vcpu = made(machine, {0, 4}, highest, *caches)
    for index in range(3):
        assert asked(vcpu, 4, index) == (0x100 + index, index, 0, 0)
    assert asked(vcpu, 4, 3) == (0, 0, 0, 0)


@proves("feature:cpuid")
def test_a_leaf_that_is_taken_out_is_zero(machine: Machine) -> None:
    """Below the highest."""
    vcpu = made(machine, {0, 2}, CpuidLeaf(0, None, 5, 0, 0, 0))
    assert asked(vcpu, 0)[0] == 5
    assert asked(vcpu, 2) == (0, 0, 0, 0)


@proves("feature:cpuid")
@needs("feature:smp")
def test_a_table_of_one_vcpu_is_its_own(machine: Machine) -> None:
    other = machine.unstarted(1)
    before = other.cpuid()
    made(machine, HYPERVISOR, CpuidLeaf(0x40000000, None, 0x40000000, 7, 7, 7))
    assert other.cpuid() == before


@needs("feature:cpuid")
def test_a_table_is_set_before_the_first_run(machine: Machine) -> None:
    vcpu = machine.vcpu()
    leaves = vcpu.cpuid()
    with pytest.raises(Refused) as refused:
        vcpu.set_cpuid(leaves)
    assert refused.value.reason == "ALREADY_STARTED"
    assert vcpu.cpuid() == leaves


@needs("feature:cpuid")
def test_a_leaf_twice_is_refused(machine: Machine) -> None:
    vcpu = machine.unstarted()
    leaf = CpuidLeaf(0, None, 0, 0, 0, 0)
    before = vcpu.cpuid()
    with pytest.raises(Refused) as refused:
        vcpu.set_cpuid([leaf, leaf])
    assert refused.value.reason == "INVALID_ARGUMENT"
    assert vcpu.cpuid() == before


@needs("register:efer")
def test_nothing_that_no_model_serves(machine: Machine) -> None:
    vcpu = made(machine)
    _, _, ecx, edx = asked(vcpu, 1)
    assert not ecx & (1 << 3 | 1 << 21 | 1 << 24), "MONITOR, x2APIC, TSC deadline"
    assert not edx & 1 << 9, "APIC"
    assert not ecx & 1 << 5, "VMX"
    assert not asked(vcpu, 0x80000001)[2] & 1 << 2, "SVM"
    assert asked(vcpu, 0xA) == (0, 0, 0, 0), "performance monitoring"


@needs("register:tsc", "register:efer")
def test_the_clock_rate_is_told(machine: Machine) -> None:
    """TSC Hz = ecx * ebx / eax: SDM vol. 2, CPUID, leaf 0x15."""
    vcpu = made(machine)
    denominator, numerator, crystal, _ = asked(vcpu, 0x15)
    assert crystal * numerator // denominator == vcpu.tsc_khz * 1000
    assert vcpu.tsc_khz == machine.session.capabilities.tsc_khz
