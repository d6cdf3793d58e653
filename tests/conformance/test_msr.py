"""MSRs that the engine does not keep, and those that the VMM asked for by a filter."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from dataspace.vcpu_page import Reason
from tests.conformance.claims import needs, proves
from tests.conformance.handlers import install, next_event
from tests.conformance.machine import DATA, ORIGIN, Machine, expect
from vmm_client.errors import Refused
from vmm_client.msr import MsrRange
from vmm_client.vcpu import Vcpu

pytestmark = proves("exit:MSR")

UNKNOWN = 0x1234567
GP = 13
SYSENTER_CS, SYSENTER_SP = 0x174, 0x175
READ_AND_WRITE = """
    1: mov ecx, {index}; rdmsr
    mov [0x4000], eax; mov [0x4004], edx
    mov eax, 0x10; xor edx, edx; wrmsr
    out 0x80, al; jmp 1b
"""


@pytest.mark.parametrize("mode", ["real", "protected", "long"])
def test_an_unknown_msr(machine: Machine, mode: str) -> None:
    vcpu = machine.guest(
        f"""
        mov ecx, {UNKNOWN}; rdmsr
        mov [{DATA}], eax; mov [{DATA + 4}], edx
        mov eax, 0x55667788; mov edx, 0x11223344; wrmsr; hlt
        """,
        mode,
    )
    exit_ = expect(vcpu, Reason.MSR)
    assert (exit_.address, exit_.size, exit_.count, exit_.is_read) == (UNKNOWN, 8, 1, True)
    exit_.reply(0xAAAABBBBCCCCDDDD)
    exit_ = expect(vcpu, Reason.MSR)
    assert (exit_.address, exit_.size, exit_.count, exit_.is_read) == (UNKNOWN, 8, 1, False)
    assert exit_.value == 0x1122334455667788
    exit_.accept()
    expect(vcpu, Reason.HLT)
    assert machine.word(DATA, 8) == 0xAAAABBBBCCCCDDDD


@pytest.mark.parametrize("mode", ["protected", "long"])
@pytest.mark.parametrize("instruction", ["rdmsr", "wrmsr"])
def test_a_fault_is_gp_at_the_instruction(machine: Machine, instruction: str, mode: str) -> None:
    """Also where nobody answers. Nothing is read."""
    install(machine, mode, [GP])
    vcpu = machine.guest(f"mov ecx, {UNKNOWN}; mov eax, 7; 1: {instruction}; jmp 1b", mode)
    at = ORIGIN + 10
    for answer in (vcpu.exit.fault, lambda: None):
        expect(vcpu, Reason.MSR)
        answer()
        event, _ = next_event(vcpu)
        assert (event.vector, event.ip, event.error) == (GP, at, 0)
        vcpu.exit.complete()
        expect(vcpu, Reason.COMPLETED)
        assert vcpu.fetch("rcx").rcx == UNKNOWN


def sees(vcpu: Vcpu) -> list[tuple[bool, int]]:
    """One turn of READ_AND_WRITE: its MSR exits, each let through."""
    seen = []
    exit_ = vcpu.turn(20)
    while exit_ and exit_.reason is Reason.MSR:
        seen.append((exit_.is_read, exit_.address))
        exit_.reply(0x5A5A)
        exit_ = vcpu.turn(20)
    assert exit_
    assert exit_.reason is Reason.PORT, exit_
    return seen


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([MsrRange(SYSENTER_CS)], [True, False]),
        ([MsrRange(SYSENTER_CS, write=False)], [True]),
        ([MsrRange(SYSENTER_CS, read=False)], [False]),
        ([MsrRange(0x100, 0x100)], [True, False]),
        ([MsrRange(SYSENTER_SP)], []),
        ([MsrRange(0x10, write=False), MsrRange(SYSENTER_CS, 3, read=False)], [False]),
        ([], []),
    ],
)
@proves("feature:msr_filter")
def test_the_filter(machine: Machine, ranges: list[MsrRange], expected: list[bool]) -> None:
    machine.session.set_msr_filter(ranges)
    vcpu = machine.guest(READ_AND_WRITE.format(index=SYSENTER_CS))
    vcpu.registers["sysenter_cs"] = 8
    assert sees(vcpu) == [(read, SYSENTER_CS) for read in expected]
    assert machine.word(DATA) == (0x5A5A if True in expected else 8)
    assert vcpu_msr(vcpu) == (8 if False in expected else 0x10)


def vcpu_msr(vcpu: Vcpu) -> int:
    """What stands in SYSENTER_CS, whoever answers the guest."""
    vcpu.exit.complete()
    expect(vcpu, Reason.COMPLETED)
    return vcpu.fetch("sysenter_cs").sysenter_cs


@proves("feature:msr_filter")
def test_another_filter_takes_its_place(machine: Machine) -> None:
    """Also while the vCPU stands in the middle of an instruction; the last is none."""
    vcpu = machine.guest(READ_AND_WRITE.format(index=SYSENTER_CS))
    filters: Iterable[list[MsrRange]] = (
        [MsrRange(SYSENTER_CS)],
        [MsrRange(SYSENTER_CS, write=False)],
        [],
    )
    assert sees(vcpu) == []
    for ranges, expected in zip(filters, ([True, False], [True], []), strict=True):
        machine.session.set_msr_filter(ranges)
        assert [read for read, _ in sees(vcpu)] == expected


@needs("feature:msr_filter")
def test_a_filtered_fault(machine: Machine) -> None:
    install(machine, "protected", [GP])
    machine.session.set_msr_filter([MsrRange(SYSENTER_CS)])
    vcpu = machine.guest(READ_AND_WRITE.format(index=SYSENTER_CS))
    expect(vcpu, Reason.MSR).fault()
    assert next_event(vcpu)[0].vector == GP


@needs("feature:msr_filter")
@pytest.mark.parametrize(
    "range_",
    [
        MsrRange(0x10, 0),
        MsrRange(0x10, 4097),
        MsrRange(0xFFFFFFFF, 2),
        MsrRange(1, 1, False, False),
    ],
)
def test_ranges_that_are_none(machine: Machine, range_: MsrRange) -> None:
    """Refused, and the filter before stays."""
    machine.session.set_msr_filter([MsrRange(SYSENTER_CS, write=False)])
    with pytest.raises(Refused) as refused:
        machine.session.set_msr_filter([range_])
    assert refused.value.reason == "INVALID_ARGUMENT"
    vcpu = machine.guest(READ_AND_WRITE.format(index=SYSENTER_CS))
    assert sees(vcpu) == [(True, SYSENTER_CS)]
