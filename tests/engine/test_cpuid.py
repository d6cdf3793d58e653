"""What the guest may believe of its CPU: nothing that no model serves, and the clock's rate."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from core_service.engine.protocol import Capability, CpuidLeaf, Status, Transport
from dataspace.vcpu_page import Reason
from tests.engine.harness import Engine, Vcpu, guest, load

SOURCE = "1: cpuid; hlt; jmp 1b"


def leaf(vcpu: Vcpu, number: int, index: int = 0) -> tuple[int, int, int, int]:
    """eax, ebx, ecx and edx."""
    vcpu.charge(rax=number, rcx=index, activity=0)
    vcpu.expect(Reason.HLT)
    values = vcpu.fetch("rax", "rbx", "rcx", "rdx")
    eax, ebx, ecx, edx = (values[name] for name in ("rax", "rbx", "rcx", "rdx"))
    assert isinstance(eax, int)
    assert isinstance(ebx, int)
    assert isinstance(ecx, int)
    assert isinstance(edx, int)
    return eax, ebx, ecx, edx


def test_the_clock_rate_is_told_in_leaf_15h(spawn: Callable[[], Engine]) -> None:
    """TSC Hz = ecx * ebx / eax: SDM vol. 2, CPUID."""
    with spawn() as engine:
        hello = engine.hello()
        with guest(engine, Transport.PAGE, SOURCE) as vcpu:
            vcpu.charge(rax=0)
            vcpu.expect(Reason.HLT)
            assert leaf(vcpu, 0)[0] >= 0x15
            denominator, numerator, crystal, _ = leaf(vcpu, 0x15)
            assert crystal * numerator // denominator == hello.tsc_khz * 1000


def test_nothing_that_needs_a_local_apic(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, SOURCE) as vcpu:
        vcpu.expect(Reason.HLT)
        _, _, ecx, edx = leaf(vcpu, 1)
        assert not ecx & (1 << 3 | 1 << 21 | 1 << 24), "MONITOR, x2APIC, TSC deadline"
        assert not edx & 1 << 9, "APIC"
        assert edx & 1 << 4, "TSC"
        assert leaf(vcpu, 0xA) == (0, 0, 0, 0), "performance monitoring"


def test_no_nested_virtualization(engine: Engine) -> None:
    """Its state is none of the registers that a VMM can save."""
    with guest(engine, Transport.PAGE, SOURCE) as vcpu:
        vcpu.expect(Reason.HLT)
        assert not leaf(vcpu, 1)[2] & 1 << 5, "VMX"
        assert not leaf(vcpu, 0x80000001)[2] & 1 << 2, "SVM"


@pytest.mark.parametrize("signature", [b"KVMKVMKVM\0\0\0", b"Microsoft Hv"])
def test_no_paravirtual_interface_is_promised(engine: Engine, signature: bytes) -> None:
    with guest(engine, Transport.PAGE, SOURCE) as vcpu:
        vcpu.expect(Reason.HLT)
        for base in (0x40000000, 0x40000100):
            words = leaf(vcpu, base)[1:]
            assert b"".join(word.to_bytes(4, "little") for word in words) != signature


def test_the_guest_sees_the_table_that_was_set(engine: Engine, transport: Transport) -> None:
    """The APIC id too is what the VMM says; sub-leaves are told apart, and what is missing is zero.
    Features of leaf 1 are left out: kvm_pvm adds the host's to them."""
    engine.need(Capability.CPUID)
    with engine.ram() as view:
        load(view, SOURCE)
        vcpu = Vcpu(engine, transport)
        mine = [
            CpuidLeaf(0, None, 0x15, 0x756E6547, 0x6C65746E, 0x49656E69),
            CpuidLeaf(1, None, 0x12345, 9 << 24, 0, 1 << 4),
            CpuidLeaf(4, 0, 0x121, 2, 3, 4),
            CpuidLeaf(4, 1, 0x122, 5, 6, 7),
            CpuidLeaf(0x80000000, None, 0x80000002, 0, 0, 0),
            CpuidLeaf(0x80000002, None, 0x11, 0x22, 0x33, 0x44),
        ]
        assert engine.set_cpuid(mine).status == Status.OK
        vcpu.begin()
        vcpu.expect(Reason.HLT)
        for said in mine:
            shown = 2 if said.function == 1 else 4
            told = leaf(vcpu, said.function, said.index or 0)
            assert told[:shown] == (said.eax, said.ebx, said.ecx, said.edx)[:shown]
        for missing, index in ((4, 2), (7, 0), (0x80000001, 0)):
            assert leaf(vcpu, missing, index) == (0, 0, 0, 0)
        vcpu.close()


def test_the_table_goes_before_its_classes_highest_leaf(engine: Engine) -> None:
    """A class without its first leaf has no leaf that could lack."""
    engine.need(Capability.CPUID)
    with engine.ram() as view:
        load(view, SOURCE)
        vcpu = Vcpu(engine, Transport.PAGE)
        mine = [
            CpuidLeaf(0, None, 4, 0x756E6547, 0x6C65746E, 0x49656E69),
            CpuidLeaf(4, 1, 0x122, 5, 6, 7),
            CpuidLeaf(0x80000005, None, 0x11, 0x22, 0x33, 0x44),
        ]
        assert engine.set_cpuid(mine).status == Status.OK
        vcpu.begin()
        vcpu.expect(Reason.HLT)
        assert leaf(vcpu, 0x80000005) == (0x11, 0x22, 0x33, 0x44)
        for beyond in (5, 0x80000000, 0x80000001, 0xC0000000):
            assert leaf(vcpu, beyond, 1) == (0x122, 5, 6, 7)
        vcpu.close()
