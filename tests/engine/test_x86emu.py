"""libx86emu's CPU: what it claims, what it refuses, and what was mended of it."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import Final

import pytest

from core_service.engine.protocol import Capability, Transport
from dataspace.registers import Segment
from dataspace.vcpu_page import ExitFlag, InjectType, Reason, ReplyFlag, names
from tests.engine.harness import ORIGIN, RAM, STACK, Engine, Vcpu, guest, memory
from tests.guests.assemble import assemble

BOTH: Final = ("x86emu", "x86emu-sanitized")
HOLE: Final = 0x100000
LONG: Final = 16 << 20  # iterations: a second and more
GENERAL: Final = ("rax", "rbx", "rcx", "rdx", "rsp", "rbp", "rsi", "rdi")
UNKNOWN, MODE = 1, 2
HANDLER: Final = 0x2000
GDT: Final = 0x4000
IDT: Final = 0x5000


@pytest.fixture(params=BOTH)
def variant(request: pytest.FixtureRequest) -> str:
    """This engine only."""
    chosen: str = request.param
    return chosen


def code_at(view: mmap.mmap | None, address: int, source: str, bits: int = 32) -> None:
    """Assemble into guest memory."""
    assert view
    code = assemble(source, bits, address)
    view[address : address + len(code)] = code


def real_handler(vcpu: Vcpu, vector: int) -> None:
    """The vector's handler says so by port, in real mode."""
    assert vcpu.memory
    vcpu.memory[vector * 4 : vector * 4 + 4] = HANDLER.to_bytes(4, "little")
    code_at(vcpu.memory, HANDLER, f"mov al, {vector}; out 0x99, al; hlt", 16)


def gate(vcpu: Vcpu, vector: int, kind: int = 0x8E) -> None:
    """A 32-bit gate to the handler, which reports eax; and tables for it."""
    assert vcpu.memory
    descriptors = struct.pack("<QQQ", 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF)
    vcpu.memory[GDT : GDT + len(descriptors)] = descriptors
    entry = struct.pack("<HHBBH", HANDLER, 0x08, 0, kind, 0)
    vcpu.memory[IDT + vector * 8 : IDT + vector * 8 + 8] = entry
    code_at(vcpu.memory, HANDLER, f"mov al, {vector}; out 0x99, al; hlt")
    vcpu.charge(gdtr=Segment(0, 0, 23, GDT), idtr=Segment(0, 0, 0x7FF, IDT))


def handled(vcpu: Vcpu, vector: int) -> None:
    """The handler was entered."""
    exit_ = vcpu.expect(Reason.PORT)
    assert (exit_.address, exit_.value) == (0x99, vector)


def stack(vcpu: Vcpu, layout: str, top: int = STACK) -> tuple[int, ...]:
    """What was pushed below `top`, the last first."""
    assert vcpu.memory
    return struct.unpack_from(layout, vcpu.memory, top - struct.calcsize(layout))


# ---- claims


def test_what_is_not_there(engine: Engine) -> None:
    offer = engine.offer
    absent = Capability.FPU | Capability.SMP | Capability.PAGING | Capability.LONG_MODE
    assert not offer.capabilities & absent
    assert offer.max_vcpus == 1
    lacking = {"r8", "r15", "cr4", "cr8", "dr7", "efer", "star", "xcr0"}
    assert not lacking & set(names(*offer.registers))


def test_reset_state(engine: Engine) -> None:
    """SDM vol. 3, table 10-1."""
    vcpu = Vcpu(engine, Transport.PAGE)
    vcpu.expect(Reason.STARTUP)
    state = vcpu.exit.registers()
    assert state["cs"] == Segment(0xF000, 0x93, 0xFFFF, 0xFFFF0000)
    assert {state[name] for name in GENERAL if name != "rdx"} == {0}
    assert (state["rip"], state["rflags"], state["cr0"]) == (0xFFF0, 2, 0x60000010)
    vcpu.close()


@pytest.mark.parametrize("variant", ["x86emu"], indirect=True)
def test_an_engine_needs_little_memory(engine: Engine) -> None:
    """The library's own tables of permissions, 35 MB where everything is touched, are never built."""
    with guest(engine, Transport.PAGE, "mov eax, [0x3000]; hlt") as vcpu:
        vcpu.expect(Reason.HLT)
        resident = int(Path(f"/proc/{engine.pid}/statm").read_text().split()[1]) * mmap.PAGESIZE
    assert resident < 8 << 20


# ---- refusals: nothing was executed, and the bytes are told

REFUSED: Final = {
    "fninit": UNKNOWN,
    "cmpxchg [0x3000], ecx": UNKNOWN,
    "lock xadd [0x3000], ecx": UNKNOWN,
    "movups [0x3000], xmm0": UNKNOWN,
    "bt [0x3000], ecx": UNKNOWN,
    "ltr ax": UNKNOWN,
    "lmsw ax": UNKNOWN,
    "rdpmc": UNKNOWN,
    "mov cr4, eax": UNKNOWN,
    "mov eax, dr7": UNKNOWN,
    "mov cr0, ebx": MODE,
    "ljmp 0x28:0": MODE,
    "push 0x102; popfd": MODE,
}


@pytest.mark.parametrize("instruction", REFUSED)
def test_what_is_not_trusted_is_refused(engine: Engine, instruction: str) -> None:
    first, _, second = instruction.partition("; ")
    skipped = len(assemble(first)) if second else 0
    with guest(engine, Transport.PAGE, f"{instruction}; hlt") as vcpu:
        gate(vcpu, 13)
        before = {name: 0x11 * number for number, name in enumerate(GENERAL[:4])}
        vcpu.charge(**before | {"rbx": 0x80000011})
        exit_ = vcpu.expect(Reason.INTERNAL_ERROR)
        assert (exit_.detail, exit_.ip) == (REFUSED[instruction], ORIGIN + skipped)
        code = assemble(instruction)[skipped:]
        assert exit_.instruction_bytes[: len(code)] == code
        assert vcpu.fetch("rax", "rcx", "rip", "cr0") == {
            "rax": 0,
            "rcx": 0x22,
            "rip": ORIGIN + skipped,
            "cr0": 0x11,
        }


@pytest.mark.parametrize(
    "charged",
    [{"cr0": 0x80000011}, {"rflags": 0x102}, {"rflags": 0x20002}, {"rax": 1 << 32}],
    ids=["paging", "trap", "virtual-8086", "64 bits"],
)
def test_states_that_it_cannot_be_in(engine: Engine, charged: dict[str, int]) -> None:
    with guest(engine, Transport.PAGE, "hlt") as vcpu:
        vcpu.expect(Reason.HLT)
        vcpu.charge(rcx=5, **charged)
        vcpu.expect(Reason.INVALID_STATE)
        assert vcpu.scalar("rcx") == 0


# ---- exceptions


@pytest.mark.parametrize(
    ("instruction", "vector"),
    [
        ("div cl", 0),
        ("ud2", 6),
        ("mov ss:[0xffff], ax", 12),
        ("mov [0xffff], ax", 13),
        (".fill 15, 1, 0x2e; nop", 13),
    ],
)
def test_a_fault_is_at_its_instruction(engine: Engine, instruction: str, vector: int) -> None:
    with guest(engine, Transport.PAGE, f"{instruction}; hlt", "real") as vcpu:
        real_handler(vcpu, vector)
        handled(vcpu, vector)
        assert stack(vcpu, "<HHH") == (ORIGIN, 0, 2)


def test_an_access_beyond_the_limit_does_nothing(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "mov [0x3000], eax; hlt") as vcpu:
        gate(vcpu, 13)
        vcpu.charge(ds=Segment(0x10, 0x493, 0x3002, 0), rax=0x55555555)
        handled(vcpu, 13)
        assert vcpu.memory
        assert vcpu.memory[0x3000:0x3004] == bytes(4)
        assert stack(vcpu, "<IIII") == (0, ORIGIN, 8, 2)


def test_a_trap_gate_leaves_interrupts_alone(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "sti; int 0x30; hlt") as vcpu:
        gate(vcpu, 0x30, 0x8F)
        handled(vcpu, 0x30)
        assert stack(vcpu, "<III") == (ORIGIN + 3, 8, 0x202)
        vcpu.expect(Reason.HLT)
        assert vcpu.scalar("rflags") & 0x200


def test_an_exception_without_a_gate_is_a_double_fault(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "div cl; hlt") as vcpu:
        gate(vcpu, 8)
        handled(vcpu, 8)
        assert stack(vcpu, "<IIII") == (0, ORIGIN, 8, 2)


def test_a_triple_fault(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "nop; ud2") as vcpu:
        vcpu.charge(idtr=Segment(0, 0, 0, 0))
        vcpu.expect(Reason.SHUTDOWN)
        assert vcpu.scalar("rip") == ORIGIN + 1


def test_an_injected_exception_pushes_its_error(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "hlt") as vcpu:
        gate(vcpu, 14)
        vcpu.expect(Reason.HLT)
        vcpu.reply.inject(InjectType.EXCEPTION, 14, 0x0B)
        handled(vcpu, 14)
        assert stack(vcpu, "<IIII") == (0x0B, ORIGIN + 1, 8, 2)


# ---- what was mended


@pytest.mark.parametrize(("instruction", "flag"), [("repe", 0x40), ("repne", 0)])
def test_repeated_comparison_ends_by_its_flag(engine: Engine, instruction: str, flag: int) -> None:
    source = f"mov edi, 0x3000; mov ecx, 9; mov al, 7; {instruction} scasb; hlt"
    with guest(engine, Transport.PAGE, source) as vcpu:
        assert vcpu.memory
        vcpu.memory[0x3000:0x3009] = bytes([7] * 4 + [1] * 5 if flag else [1] * 4 + [7] * 5)
        vcpu.expect(Reason.HLT)
        assert vcpu.fetch("rcx", "rdi") == {"rcx": 4, "rdi": 0x3005}


def test_a_repeated_instruction_can_be_paused(engine: Engine, transport: Transport) -> None:
    """In between, with the registers that say what is left of it."""
    with guest(engine, transport, "rep lodsb; hlt") as vcpu:
        fd = memory(LONG)
        try:
            engine.map(HOLE, fd, LONG)
        finally:
            os.close(fd)
        vcpu.charge(rcx=LONG, rsi=HOLE)
        done = 0
        while not done:
            vcpu.start()
            vcpu.pause()
            vcpu.wait()
            assert vcpu.reason == Reason.PAUSED
            state = vcpu.fetch("rcx", "rsi", "rip")
            assert isinstance(state["rsi"], int)
            done = state["rsi"] - HOLE
            assert (state["rcx"], state["rip"]) == (LONG - done, ORIGIN)


def test_flags_above_a_word_stay(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "pushf; popf; pushfd; pop eax; hlt", "real") as vcpu:
        vcpu.charge(rflags=0x200002)
        vcpu.expect(Reason.HLT)
        assert vcpu.scalar("rflags") == 0x200002


def test_output_string_by_another_segment(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "mov si, 4; mov cx, 2; fs rep outsw; hlt", "real") as vcpu:
        assert vcpu.memory
        vcpu.memory[0x3004:0x3008] = b"\x01\x02\x03\x04"
        vcpu.charge(fs=Segment(0x300, 0x93, 0xFFFF, 0x3000), rdx=0x80)
        assert [vcpu.expect(Reason.PORT).data for _ in range(2)] == [b"\x01\x02", b"\x03\x04"]
        vcpu.expect(Reason.HLT)


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_fetch_from_nowhere_comes_before_a_device(engine: Engine, missing: int) -> None:
    """Of an instruction that reads a device and then has an immediate operand."""
    code = assemble(f"add dword ptr [{HOLE}], 0x44332211; hlt")
    start = RAM - len(code) + missing + 1
    with guest(engine, Transport.PAGE, "hlt") as vcpu:
        assert vcpu.memory
        vcpu.memory[start:RAM] = code[: RAM - start]
        vcpu.charge(rip=start)
        exit_ = vcpu.expect(Reason.MEMORY_FAULT)
        assert exit_.flags & ExitFlag.FETCH
        assert (exit_.address, exit_.ip) == (RAM, start)
        fd = memory(RAM, code[RAM - start :])
        try:
            engine.map(RAM, fd, RAM)
        finally:
            os.close(fd)
        vcpu.reply.set_value(0)
        assert vcpu.expect(Reason.MMIO).flags & ExitFlag.READ
        vcpu.reply.set_value(0x11111111)
        assert vcpu.expect(Reason.MMIO).value == 0x55443322
        vcpu.expect(Reason.HLT)


def at_the_end(vcpu: Vcpu, code: bytes) -> None:
    """The code is the last that there is."""
    assert vcpu.memory
    vcpu.memory[RAM - len(code) : RAM] = code
    vcpu.charge(rip=RAM - len(code))


@pytest.mark.parametrize("instruction", ["bt [0x3000], ecx", "bts [0x3000], ecx", "mov cr0, eax"])
def test_an_instruction_that_lacks_its_modrm_byte_is_fetched(
    engine: Engine, instruction: str
) -> None:
    with guest(engine, Transport.PAGE, "hlt") as vcpu:
        at_the_end(vcpu, assemble(instruction)[:2])
        assert vcpu.expect(Reason.MEMORY_FAULT).address == RAM


def test_rdpmc_at_the_end_of_memory_is_refused(engine: Engine) -> None:
    """It has no ModRM byte that could lack."""
    with guest(engine, Transport.PAGE, "hlt") as vcpu:
        at_the_end(vcpu, assemble("rdpmc"))
        assert vcpu.expect(Reason.INTERNAL_ERROR).detail == UNKNOWN


@pytest.mark.parametrize("address", [0x3000, HOLE])
def test_what_is_fetched_ahead_makes_no_exception(engine: Engine, address: int) -> None:
    """A division at the end of memory, where reads do not count yet."""
    with guest(engine, Transport.PAGE, "hlt") as vcpu:
        assert vcpu.memory
        vcpu.memory[0x3000] = 1
        vcpu.charge(rax=7, rdx=0)
        at_the_end(vcpu, assemble(f"div dword ptr [{address}]; hlt"))
        vcpu.run()
        if address == HOLE:
            assert vcpu.reason == Reason.MMIO
            vcpu.reply.set_value(1)
            vcpu.run()
        assert vcpu.reason == Reason.HLT, vcpu.describe()
        assert vcpu.scalar("rax") == 7


@pytest.mark.parametrize(
    ("instruction", "rdx", "rcx"),
    [("idiv ecx", 1 << 31, 0xFFFFFFFF), ("idiv cx", 0x8000, 0xFFFF), ("aam 0", 0, 0)],
)
def test_a_division_that_the_host_would_not_survive(
    engine: Engine, instruction: str, rdx: int, rcx: int
) -> None:
    """The library leaves it to the host's CPU."""
    with guest(engine, Transport.PAGE, f"{instruction}; hlt") as vcpu:
        gate(vcpu, 0)
        vcpu.charge(rax=0, rdx=rdx, rcx=rcx)
        handled(vcpu, 0)


def test_an_nmi_that_cannot_be_delivered_masks_none(engine: Engine) -> None:
    """Its gate is a task's: nothing was executed."""
    with guest(engine, Transport.PAGE, "hlt") as vcpu:
        gate(vcpu, 2, 0x85)
        vcpu.reply.inject(InjectType.NMI, 2)
        assert vcpu.expect(Reason.INTERNAL_ERROR).detail == MODE
        assert vcpu.scalar("interruptibility") == 0
        gate(vcpu, 2)
        vcpu.reply.inject(InjectType.NMI, 2)
        handled(vcpu, 2)


def watch(vcpu: Vcpu, address: int) -> None:
    """Stop behind accesses to four bytes."""
    vcpu.reply.set_breakpoints([address], 1 | 0xF << 16)
    vcpu.flag(ReplyFlag.BREAKPOINTS)


def test_a_data_breakpoint_of_what_was_not_executed_is_not_told(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "popfd; nop; hlt") as vcpu:
        assert vcpu.memory
        vcpu.memory[STACK : STACK + 4] = (0x102).to_bytes(4, "little")  # TF: refused
        watch(vcpu, STACK)
        vcpu.expect(Reason.INTERNAL_ERROR)
        vcpu.charge(rip=ORIGIN + 1)
        vcpu.expect(Reason.HLT)


def test_a_data_breakpoint_stops_behind_an_events_delivery(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "hlt", "real") as vcpu:
        real_handler(vcpu, 0x20)
        watch(vcpu, STACK - 4)
        vcpu.charge(rflags=0x202)
        vcpu.reply.inject(InjectType.INTERRUPT, 0x20)
        exit_ = vcpu.expect(Reason.DEBUG)
        assert (exit_.detail, exit_.address) == (1, HANDLER)
        handled(vcpu, 0x20)
