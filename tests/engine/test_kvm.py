"""KVM's vCPUs at the edges: faults of deliveries, split accesses, state that no CPU takes, tables."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from core_service.engine import protocol
from core_service.engine.protocol import CpuidLeaf, MsrRange, Status, Transport
from dataspace.registers import Segment
from dataspace.vcpu_page import (
    FPU_BYTES,
    ExitFlag,
    Injection,
    InjectType,
    Reason,
    ReplyFlag,
    mask,
)
from tests.engine.harness import ORIGIN, STACK, Engine, Vcpu, guest

pytestmark = pytest.mark.parametrize("variant", ["kvm", "kvm-sanitized"], indirect=True)

HOLE: Final = 0x100000
PAGE: Final = 4096
SOFTWARE: Final = Path("/sys/module/kvm_pvm").exists()

GDT: Final = 0x5000
IDT: Final = 0x6000
HANDLERS: Final = 0x3000  # 16 bytes apart
GENERAL_PROTECTION: Final = 13
NOT_PRESENT: Final = 11
DOUBLE_FAULT: Final = 8
PAT: Final = 0x277
WIDE: Final = CpuidLeaf(0x80000008, None, 0x3228, 0, 0, 0)  # 50 bits, linear


def handle_events(vcpu: Vcpu) -> None:
    """An IDT of long mode: every handler is a HLT at its own address."""
    assert vcpu.memory
    vcpu.memory[GDT + 0x18 : GDT + 0x20] = struct.pack("<Q", 0x00AF9B000000FFFF)
    for vector in range(256):
        address = HANDLERS + 16 * vector
        vcpu.memory[address] = 0xF4
        gate = struct.pack("<HHHHQ", address & 0xFFFF, 0x18, 0x8E00, address >> 16, 0)
        vcpu.memory[IDT + 16 * vector : IDT + 16 * vector + 16] = gate
    vcpu.charge(gdtr=Segment(0, 0, 0x1F, GDT), idtr=Segment(0, 0, 0xFFF, IDT))


def remove_gate(vcpu: Vcpu, vector: int) -> None:
    """Not present."""
    assert vcpu.memory
    vcpu.memory[IDT + 16 * vector : IDT + 16 * vector + 16] = bytes(16)


def handled(vcpu: Vcpu) -> int:
    """The vector in whose handler the last exit, HLT, stands."""
    assert vcpu.reason == Reason.HLT, vcpu.describe()
    vector, rest = divmod(vcpu.exit.ip - HANDLERS, 16)
    assert not rest
    return vector


def error_code(vcpu: Vcpu) -> int:
    """On top of the stack."""
    assert vcpu.memory
    top = vcpu.scalar("rsp")
    return int.from_bytes(vcpu.memory[top : top + 8], "little")


# ---- events and faults


@pytest.mark.parametrize(
    ("kind", "vector"),
    [(InjectType.INTERRUPT, 0x40), (InjectType.NMI, 2), (InjectType.EXCEPTION, 6)],
)
def test_an_event_without_a_gate_is_a_fault_once(
    engine: Engine, transport: Transport, kind: InjectType, vector: int
) -> None:
    """#NP, with the gate, IDT and EXT in its error code: SDM vol. 3, 6.13. kvm_pvm leaves EXT out, and
    makes a double fault of an exception. The event never comes again."""
    doubled = SOFTWARE and kind == InjectType.EXCEPTION
    with guest(engine, transport, "1: jmp 1b", "long") as vcpu:
        handle_events(vcpu)
        remove_gate(vcpu, vector)
        vcpu.charge(rflags=0x202)
        vcpu.pause()
        vcpu.expect(Reason.PAUSED)
        vcpu.reply.inject(kind, vector)
        vcpu.expect(Reason.HLT)
        assert vcpu.exit.injection == Injection.TAKEN
        assert handled(vcpu) == (DOUBLE_FAULT if doubled else NOT_PRESENT)
        assert error_code(vcpu) == (0 if doubled else vector << 3 | 2 | (not SOFTWARE))
        vcpu.charge(rip=ORIGIN, rsp=STACK, rflags=0x202)
        vcpu.start()
        vcpu.pause()
        vcpu.wait()
        assert vcpu.reason == Reason.PAUSED
        assert vcpu.exit.injection == Injection.NONE


def test_a_fault_ends_an_msr_access_that_is_completed(engine: Engine, transport: Transport) -> None:
    """COMPLETED stands at the instruction that faults; the guest's handler comes with the next run."""
    with guest(engine, transport, "mov ecx, 0x1234567; rdmsr; nop; hlt", "long") as vcpu:
        handle_events(vcpu)
        vcpu.expect(Reason.MSR)
        vcpu.reply.set_flags(ReplyFlag.FAULT | ReplyFlag.COMPLETE)
        vcpu.expect(Reason.COMPLETED)
        assert vcpu.scalar("rip") == ORIGIN + 5
        vcpu.expect(Reason.HLT)
        assert handled(vcpu) == GENERAL_PROTECTION


def test_a_fault_ends_a_stepped_msr_access(engine: Engine, transport: Transport) -> None:
    with guest(engine, transport, "mov ecx, 0x1234567; rdmsr; nop; hlt", "long") as vcpu:
        handle_events(vcpu)
        vcpu.expect(Reason.MSR)
        vcpu.reply.set_flags(ReplyFlag.FAULT | ReplyFlag.STEP)
        vcpu.expect(Reason.DEBUG)
        vcpu.expect(Reason.HLT)
        assert handled(vcpu) == GENERAL_PROTECTION


def test_no_interrupt_is_taken_while_a_fault_waits(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "mov ecx, 0x1234567; rdmsr; nop; hlt", "long") as vcpu:
        handle_events(vcpu)
        vcpu.charge(rflags=0x202)
        vcpu.expect(Reason.MSR)
        vcpu.reply.set_flags(ReplyFlag.FAULT | ReplyFlag.COMPLETE)
        vcpu.expect(Reason.COMPLETED)
        assert not vcpu.exit.flags & ExitFlag.INTERRUPTIBLE
        vcpu.reply.inject(InjectType.INTERRUPT, 0x40)
        vcpu.expect(Reason.HLT)
        assert vcpu.exit.injection == Injection.NOT_TAKEN
        assert handled(vcpu) == GENERAL_PROTECTION


def test_no_exit_tells_of_an_nmi_window(spawn: Callable[[], Engine]) -> None:
    """KVM holds an NMI back by itself."""
    with spawn() as engine:
        assert not engine.hello().exit_reasons >> Reason.NMI_WINDOW & 1


# ---- accesses that KVM splits


@pytest.mark.parametrize("before", range(1, 8))
def test_a_read_across_pages_gets_all_its_bytes(
    engine: Engine, transport: Transport, before: int
) -> None:
    """KVM asks for 1 to 7 bytes and the rest: in parts that are powers of two, and aligned."""
    value = 0x8877665544332211
    device = {HOLE - before + at: byte for at, byte in enumerate(value.to_bytes(8, "little"))}
    with guest(engine, transport, f"mov rax, [{HOLE - before}]; hlt", "long") as vcpu:
        while vcpu.run().reason == Reason.MMIO:
            address, size = vcpu.exit.address, vcpu.exit.size
            assert size in {1, 2, 4}
            assert address % size == 0
            asked = range(address, address + size)
            vcpu.reply.set_value(int.from_bytes(bytes(device.pop(at) for at in asked), "little"))
        assert vcpu.reason == Reason.HLT
        assert not device
        assert vcpu.scalar("rax") == value


# ---- state that no CPU takes


def fpu_area(
    *, mxcsr: int = 0x1F80, xstate_bv: int = 3, xcomp_bv: int = 0, reserved: int = 0
) -> bytes:
    """An XSAVE area: SDM vol. 1, 13.4."""
    area = bytearray(FPU_BYTES)
    struct.pack_into("<H", area, 0, 0x37F)
    struct.pack_into("<I", area, 24, mxcsr)
    struct.pack_into("<QQQ", area, 512, xstate_bv, xcomp_bv, reserved)
    area[160:176] = b"\x77" * 16
    return bytes(area)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mxcsr": 0x10000},
        {"mxcsr": 0x80001F80, "xstate_bv": 0},
        {"xstate_bv": 1 << 62},
        {"xcomp_bv": 1 << 63},
        {"reserved": 1},
    ],
    ids=str,
)
def test_fpu_state_that_xrstor_refuses(
    engine: Engine, transport: Transport, wrong: dict[str, int]
) -> None:
    """SDM vol. 1, 13.8.1. What was there stays, and so does the vCPU."""
    with guest(engine, transport, "1: hlt; jmp 1b", "long") as vcpu:
        vcpu.expect(Reason.HLT)
        vcpu.fetch("fpu")
        before = vcpu.fpu
        vcpu.charge_fpu(fpu_area(**wrong))
        vcpu.expect(Reason.INVALID_STATE)
        vcpu.fetch("fpu")
        assert vcpu.fpu == before
        vcpu.charge_fpu(fpu_area())
        vcpu.expect(Reason.HLT)
        vcpu.fetch("fpu")
        assert vcpu.fpu[160:176] == b"\x77" * 16


@pytest.mark.skipif(not SOFTWARE, reason="this host's KVM has all kinds of paging")
def test_paging_that_this_kvm_drops_is_refused(engine: Engine, transport: Transport) -> None:
    """kvm_pvm clears CR0.PG outside of long mode, and says nothing."""
    with guest(engine, transport, "hlt", "protected") as vcpu:
        vcpu.charge(cr0=0x80000011)
        vcpu.expect(Reason.INVALID_STATE)


def test_only_registers_that_the_host_has_are_offered(spawn: Callable[[], Engine]) -> None:
    """What is offered can be read, but for the page directory pointers outside of PAE paging."""
    pdptes = mask(f"pdpte{number}" for number in range(4))[0]
    with spawn() as engine:
        offered = engine.hello().registers[0]
        if SOFTWARE:
            assert not offered & pdptes
        vcpu = Vcpu(engine, Transport.PAGE)
        vcpu.expect(Reason.STARTUP)
        assert vcpu.exit.masks[0] == offered & ~pdptes
        vcpu.close()


# ---- long mode


def test_a_guest_enters_long_mode(engine: Engine) -> None:
    source = """
        mov eax, 0x9000; mov cr3, eax
        mov eax, 0x20; mov cr4, eax
        mov ecx, 0xc0000080; mov eax, 0x100; xor edx, edx; wrmsr
        mov eax, 0x80000011; mov cr0, eax
        ljmp 0x18, offset 1f
        .code64
        1: mov rax, 0x1122334455667788; hlt
    """
    with guest(engine, Transport.PAGE, source) as vcpu:
        handle_events(vcpu)
        vcpu.expect(Reason.HLT)
        assert vcpu.scalar("rax") == 0x1122334455667788


# ---- tables


def test_a_table_that_kvm_refuses(engine: Engine, transport: Transport) -> None:
    """A width of linear addresses that no CPU has. The table before stays."""
    vcpu = Vcpu(engine, transport)
    before = tuple(engine.cpuid())
    refused = engine.ask(lambda n: protocol.cpuid_packet(n, 0, [WIDE]))
    assert refused.status == Status.BAD_MESSAGE
    assert refused.text == "vCPU 0: KVM_SET_CPUID2 of 1 leaves: Invalid argument"
    assert tuple(engine.cpuid()) == before
    vcpu.close()


def test_an_empty_table(engine: Engine) -> None:
    """FPU state moves all the same."""
    vcpu = Vcpu(engine, Transport.STREAM)
    size = vcpu.exit.fpu_size
    engine.demand(lambda n: protocol.cpuid_packet(n, 0, []))
    assert tuple(engine.cpuid()) == ()
    vcpu.expect(Reason.STARTUP)
    assert vcpu.exit.fpu_size >= max(size, 576)
    vcpu.fetch("fpu")
    vcpu.charge_fpu(fpu_area())
    vcpu.pause()
    vcpu.expect(Reason.PAUSED)
    vcpu.fetch("fpu")
    assert vcpu.fpu[160:176] == b"\x77" * 16


def test_an_msr_that_kvm_keeps_is_seen_for_writes_only(
    engine: Engine, transport: Transport
) -> None:
    """A write that the VMM has seen changes nothing."""
    source = f"mov ecx, {PAT}; rdmsr; mov ebx, eax; xor eax, eax; wrmsr; rdmsr; hlt"
    with guest(engine, transport, source) as vcpu:
        writes = [MsrRange(PAT, 1, read=False, write=True)]
        engine.demand(lambda n: protocol.msr_filter_packet(n, writes))
        exit_ = vcpu.expect(Reason.MSR)
        assert (exit_.address, exit_.flags & ExitFlag.READ) == (PAT, 0)
        vcpu.expect(Reason.HLT)
        assert vcpu.scalar("rax") == vcpu.scalar("rbx") != 0
