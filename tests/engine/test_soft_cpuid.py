"""CPUID tables and MSR filters on the software CPU: what it answers, and what stays the CPU's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from core_service.engine.protocol import CPUID_LEAVES, CpuidLeaf, MsrRange, Status, Transport
from dataspace.vcpu_page import ExitFlag, Reason, ReplyFlag
from tests.engine.harness import Engine, Vcpu, load

pytestmark = pytest.mark.parametrize("variant", ["soft", "soft-sanitized"], indirect=True)

REGISTERS: Final = ("rax", "rbx", "rcx", "rdx")
OSXSAVE: Final = 1 << 27
OSPKE: Final = 1 << 4
STAR, LSTAR, UNKNOWN = 0xC0000081, 0xC0000082, 0x4321


@contextmanager
def tabled(engine: Engine, leaves: list[CpuidLeaf], mode: str = "protected") -> Iterator[Vcpu]:
    """A vCPU with this table that executes CPUID and halts."""
    with engine.ram() as view:
        load(view, "1: cpuid; hlt; jmp 1b", mode)
        vcpu = Vcpu(engine, Transport.PAGE)
        assert engine.set_cpuid(leaves).status == Status.OK
        vcpu.begin(mode)
        yield vcpu
        vcpu.close()


def ask(vcpu: Vcpu, function: int, index: int = 0) -> list[int]:
    """eax, ebx, ecx, edx."""
    vcpu.charge(rax=function, rcx=index, activity=0)
    vcpu.want(*REGISTERS)
    answered = vcpu.expect(Reason.HLT).registers()
    return [int(answered[name]) for name in REGISTERS]  # type: ignore[arg-type]  # scalars all


def test_the_table_at_first(engine: Engine) -> None:
    """Each answers as it is told, and what is told is all there is."""
    with engine.ram() as view:
        load(view, "1: cpuid; hlt; jmp 1b")
        vcpu = Vcpu(engine, Transport.PAGE)
        table = {
            (leaf.function, leaf.index): [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
            for leaf in engine.cpuid()
        }
        assert len(table) < CPUID_LEAVES
        assert {(0, None), (4, 0), (4, 3), (7, 0), (0xD, 0), (0xD, 7)} <= table.keys()
        vcpu.begin()
        for (function, index), answer in table.items():
            assert ask(vcpu, function, index or 0) == answer
        for function in [*range(0x17), *range(0x80000000, 0x80000009)]:
            if not any(function == told for told, _ in table):
                assert ask(vcpu, function) == [0, 0, 0, 0]
        for function, index in ((4, 4), (7, 1), (0xD, 3), (0xD, 64), (0xD, 0xFFFFFFFF)):
            assert ask(vcpu, function, index) == [0, 0, 0, 0]
        vcpu.close()


def test_leaves_that_are_not_in_the_table(engine: Engine) -> None:
    leaves = [
        CpuidLeaf(0, None, 4, 1, 2, 3),
        CpuidLeaf(4, 1, 41, 42, 43, 44),
        CpuidLeaf(0x40000000, None, 0x40000001, 5, 6, 7),
        CpuidLeaf(0x40000100, None, 8, 8, 8, 8),
        CpuidLeaf(0x80000000, None, 0x80000002, 0, 0, 0),
    ]
    with tabled(engine, leaves) as vcpu:
        zero, highest = [0, 0, 0, 0], [41, 42, 43, 44]
        assert ask(vcpu, 0, 77) == [4, 1, 2, 3]
        assert ask(vcpu, 3) == zero
        assert ask(vcpu, 4, 1) == highest
        assert ask(vcpu, 4, 0) == zero
        assert ask(vcpu, 5, 1) == highest
        assert ask(vcpu, 5, 0) == zero
        assert ask(vcpu, 0x40000001, 1) == zero
        assert ask(vcpu, 0x40000002, 1) == highest
        assert ask(vcpu, 0x40000100) == [8, 8, 8, 8]
        assert ask(vcpu, 0x80000002, 1) == zero
        assert ask(vcpu, 0x80000003, 1) == highest
        assert ask(vcpu, 0xC0000000, 1) == highest, "a class of its own, without any leaf"


def test_an_empty_table_is_all_zero(engine: Engine) -> None:
    with tabled(engine, []) as vcpu:
        for function in (0, 1, 7, 0xD, 0x40000000, 0x80000000, 0xFFFFFFFF):
            assert ask(vcpu, function) == [0, 0, 0, 0]


def test_what_the_cpu_computes_stays_its_own(engine: Engine) -> None:
    """It has no protection keys, so OSPKE is 0."""
    ones = 0xFFFFFFFF
    leaves = [
        CpuidLeaf(0, None, 0xD, 0, 0, 0),
        CpuidLeaf(1, None, 0, 0, 0, 0),
        CpuidLeaf(7, 0, ones, ones, ones, ones),
        CpuidLeaf(0xD, 0, 7, 1, 2, 3),
        CpuidLeaf(0xD, 2, 4, 5, 6, 7),
    ]
    with tabled(engine, leaves) as vcpu:
        assert ask(vcpu, 1) == [0, 0, 0, 0]
        assert ask(vcpu, 7) == [ones, ones, ones & ~OSPKE, ones]
        vcpu.charge(cr4=1 << 18, xcr0=3)
        assert ask(vcpu, 1) == [0, 0, OSXSAVE, 0]
        assert ask(vcpu, 0xD) == [7, 512 + 64, 2, 3]
        vcpu.charge(xcr0=7)
        assert ask(vcpu, 0xD) == [7, 512 + 64 + 256, 2, 3]
        assert ask(vcpu, 0xD, 2) == [4, 5, 6, 7]


def test_each_vcpu_has_its_table(engine: Engine) -> None:
    with engine.ram() as view:
        load(view, "cpuid; hlt")
        created = [Vcpu(engine, Transport.PAGE, index) for index in range(2)]
        assert engine.set_cpuid([CpuidLeaf(1, None, 9, 9, 9, 9)], 1).status == Status.OK
        for vcpu in created:
            vcpu.begin()
        assert ask(created[1], 1)[0] == 9
        assert ask(created[0], 1)[0] == 0x60663
        for vcpu in created:
            vcpu.close()


# ---- MSRs

READ: Final = "mov ecx, {msr}; rdmsr; mov esi, eax; mov edi, edx; hlt"
WRITE: Final = "mov ecx, {msr}; mov eax, 0x11; mov edx, 0x22; wrmsr; hlt"


@contextmanager
def running(engine: Engine, source: str, msr: int) -> Iterator[Vcpu]:
    """A vCPU in long mode that is about to execute it."""
    with engine.ram() as view:
        load(view, source.format(msr=msr), "long")
        vcpu = Vcpu(engine, Transport.PAGE)
        vcpu.begin("long")
        vcpu.charge(star=0x1234, lstar=0x5678)
        yield vcpu
        vcpu.close()


def test_a_filtered_read_is_the_vmms(engine: Engine) -> None:
    engine.filter_msrs(MsrRange(STAR - 1, 2, read=True, write=False))
    with running(engine, READ, STAR) as vcpu:
        exit_ = vcpu.expect(Reason.MSR)
        assert (exit_.address, exit_.size) == (STAR, 8)
        assert exit_.flags & ExitFlag.READ
        vcpu.reply.set_value(0xAABBCCDD11223344)
        vcpu.expect(Reason.HLT)
        assert (vcpu.scalar("rsi"), vcpu.scalar("rdi")) == (0x11223344, 0xAABBCCDD)
        assert vcpu.scalar("star") == 0x1234


def test_a_filtered_write_is_the_vmms(engine: Engine) -> None:
    engine.filter_msrs(MsrRange(STAR, 1, read=False, write=True))
    with running(engine, WRITE, STAR) as vcpu:
        exit_ = vcpu.expect(Reason.MSR)
        assert (exit_.address, exit_.value) == (STAR, 0x22_0000_0011)
        assert not exit_.flags & ExitFlag.READ
        vcpu.expect(Reason.HLT)
        assert vcpu.scalar("star") == 0x1234


@pytest.mark.parametrize("source", [READ, WRITE])
def test_a_filtered_access_can_fault(engine: Engine, source: str) -> None:
    """#GP, and without an IDT the end."""
    engine.filter_msrs(MsrRange(STAR, 1, read=True, write=True))
    with running(engine, source, STAR) as vcpu:
        vcpu.expect(Reason.MSR)
        vcpu.reply.set_flags(ReplyFlag.FAULT)
        vcpu.expect(Reason.SHUTDOWN)


@pytest.mark.parametrize(
    "ranges",
    [
        [],
        [MsrRange(STAR, 1, read=False, write=True)],
        [MsrRange(STAR + 1, 4096, read=True, write=True)],
        [MsrRange(STAR - 4096, 4096, read=True, write=True)],
    ],
)
def test_what_is_not_filtered_is_the_cpus(engine: Engine, ranges: list[MsrRange]) -> None:
    engine.filter_msrs(*ranges)
    with running(engine, READ, STAR) as vcpu:
        vcpu.expect(Reason.HLT)
        assert vcpu.scalar("rsi") == 0x1234


def test_an_unknown_msr_exits_filtered_or_not(engine: Engine) -> None:
    engine.filter_msrs(MsrRange(UNKNOWN, 1, read=True, write=False))
    with running(engine, READ, UNKNOWN) as vcpu:
        assert vcpu.expect(Reason.MSR).address == UNKNOWN
    engine.filter_msrs()
