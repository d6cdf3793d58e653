"""Why a vCPU stops, and what the reply does: the same on every engine and transport."""

from __future__ import annotations

import pytest

from core_service.engine.protocol import Capability, Transport
from dataspace.registers import Segment
from dataspace.vcpu_page import DATA_BYTES, FPU_BYTES, Activity, ExitFlag, Reason, ReplyFlag
from tests.engine.harness import ORIGIN, RAM, Engine, Vcpu, guest

HOLE = 0x100000  # nothing is attached there
XMM0 = slice(160, 176)  # in the FPU area: SDM vol. 1, table 10-2
SEGMENT_NOTHING = Segment(0, 0, 0, 0)


def ran_to_end(vcpu: Vcpu) -> None:
    """The guest reached its `hlt`."""
    vcpu.expect(Reason.HLT)


@pytest.mark.parametrize(("size", "register"), [(1, "al"), (2, "ax"), (4, "eax")])
def test_port_write(engine: Engine, transport: Transport, size: int, register: str) -> None:
    with guest(
        engine, transport, f"mov eax, 0x44332211; mov dx, 0x3f8; out dx, {register}; hlt"
    ) as vcpu:
        exit_ = vcpu.expect(Reason.PORT)
        assert (exit_.address, exit_.size, exit_.count) == (0x3F8, size, 1)
        assert exit_.data == b"\x11\x22\x33\x44"[:size]
        assert exit_.flags & (ExitFlag.READ | ExitFlag.MID_INSTRUCTION) == ExitFlag.MID_INSTRUCTION
        ran_to_end(vcpu)


@pytest.mark.parametrize(
    ("size", "register", "result"), [(1, "al", 0x443322FE), (2, "ax", 0x4433CAFE), (4, "eax", None)]
)
def test_port_read(
    engine: Engine, transport: Transport, size: int, register: str, result: int | None
) -> None:
    source = f"mov eax, 0x44332211; mov dx, 0x60; in {register}, dx; hlt"
    with guest(engine, transport, source) as vcpu:
        exit_ = vcpu.expect(Reason.PORT)
        assert (exit_.address, exit_.size, exit_.count) == (0x60, size, 1)
        assert exit_.flags & ExitFlag.READ
        vcpu.reply.set_value(0xDEADCAFE)
        ran_to_end(vcpu)
        assert vcpu.scalar("rax") == (0xDEADCAFE if result is None else result)


@pytest.mark.parametrize("length", [3, 600])
def test_string_output(engine: Engine, transport: Transport, length: int) -> None:
    text = bytes(number % 251 for number in range(length))
    source = f"mov esi, 0x2000; mov ecx, {length}; mov dx, 0x80; cld; rep outsb; hlt"
    with guest(engine, transport, source) as vcpu:
        assert vcpu.memory
        vcpu.memory[0x2000 : 0x2000 + length] = text
        seen = b""
        while vcpu.run().reason == Reason.PORT:
            assert vcpu.exit.size * vcpu.exit.count <= DATA_BYTES
            seen += vcpu.exit.data
        assert seen == text
        assert vcpu.reason == Reason.HLT


@pytest.mark.parametrize(("instruction", "size"), [("insb", 1), ("insw", 2), ("insd", 4)])
def test_string_input(engine: Engine, transport: Transport, instruction: str, size: int) -> None:
    length = 600
    text = bytes(number % 251 for number in range(length))
    source = (
        f"mov edi, 0x2000; mov ecx, {length // size}; mov dx, 0x80; cld; rep {instruction}; hlt"
    )
    with guest(engine, transport, source) as vcpu:
        assert vcpu.memory
        given = 0
        while vcpu.run().reason == Reason.PORT:
            bytes_ = vcpu.exit.size * vcpu.exit.count
            assert vcpu.exit.size == size
            assert bytes_ <= DATA_BYTES
            vcpu.reply.set_data(text[given : given + bytes_])
            given += bytes_
        assert vcpu.reason == Reason.HLT
        assert vcpu.memory[0x2000 : 0x2000 + length] == text


@pytest.mark.parametrize(("size", "register"), [(1, "al"), (2, "ax"), (4, "eax"), (8, "rax")])
def test_mmio_write(engine: Engine, transport: Transport, size: int, register: str) -> None:
    source = f"mov rax, 0x8877665544332211; mov [{HOLE + 8}], {register}; hlt"
    with guest(engine, transport, source, "long") as vcpu:
        exit_ = vcpu.expect(Reason.MMIO)
        assert (exit_.address, exit_.size, exit_.count) == (HOLE + 8, size, 1)
        assert exit_.data == bytes(range(0x11, 0x99, 0x11))[:size]
        assert not exit_.flags & (ExitFlag.READ | ExitFlag.WRITE_PROTECTED)
        ran_to_end(vcpu)


@pytest.mark.parametrize(
    ("register", "size", "result"),
    [
        ("al", 1, 0xFFFFFFFFFFFFFF88),
        ("ax", 2, 0xFFFFFFFFFFFF7788),
        ("eax", 4, 0x55667788),
        ("rax", 8, 0x1122334455667788),
    ],
)
def test_mmio_read(
    engine: Engine, transport: Transport, register: str, size: int, result: int
) -> None:
    with guest(engine, transport, f"mov rax, -1; mov {register}, [{HOLE}]; hlt", "long") as vcpu:
        exit_ = vcpu.expect(Reason.MMIO)
        assert (exit_.address, exit_.size, exit_.count) == (HOLE, size, 1)
        assert exit_.flags & ExitFlag.READ
        vcpu.reply.set_value(0x1122334455667788)
        ran_to_end(vcpu)
        assert vcpu.scalar("rax") == result


def test_mmio_across_pages_gives_each_page_its_bytes(engine: Engine, transport: Transport) -> None:
    with guest(engine, transport, f"mov eax, 0x44332211; mov [{HOLE + 0xFFE}], eax; hlt") as vcpu:
        seen: dict[int, int] = {}
        while vcpu.run().reason == Reason.MMIO:
            seen |= dict(enumerate(vcpu.exit.data, vcpu.exit.address))
        assert vcpu.reason == Reason.HLT
        assert seen == dict(enumerate(b"\x11\x22\x33\x44", HOLE + 0xFFE))


def test_msr_read_and_write(engine: Engine, transport: Transport) -> None:
    source = """
        mov ecx, 0x1234567; rdmsr
        mov esi, eax; mov edi, edx
        mov eax, 0x55667788; mov edx, 0x11223344; wrmsr; hlt
    """
    with guest(engine, transport, source) as vcpu:
        exit_ = vcpu.expect(Reason.MSR)
        assert exit_.address == 0x1234567
        assert exit_.flags & ExitFlag.READ
        assert (exit_.size, exit_.count) == (8, 1)
        vcpu.reply.set_value(0xAAAABBBBCCCCDDDD)
        exit_ = vcpu.expect(Reason.MSR)
        assert not exit_.flags & ExitFlag.READ
        assert (exit_.size, exit_.count) == (8, 1)
        assert exit_.value == 0x1122334455667788
        ran_to_end(vcpu)
        assert vcpu.fetch("rsi", "rdi") == {"rsi": 0xCCCCDDDD, "rdi": 0xAAAABBBB}


def test_msr_fault_reaches_the_guest(engine: Engine, transport: Transport) -> None:
    """Without an interrupt table #GP is a triple fault."""
    with guest(engine, transport, "mov ecx, 0x1234567; rdmsr; hlt", "long") as vcpu:
        vcpu.charge(idtr=SEGMENT_NOTHING)
        vcpu.expect(Reason.MSR)
        vcpu.reply.set_flags(ReplyFlag.FAULT)
        vcpu.expect(Reason.SHUTDOWN)
        vcpu.expect(Reason.SHUTDOWN)
        assert vcpu.scalar("activity") == Activity.SHUTDOWN


@pytest.mark.parametrize("mode", ["real", "protected", "long"])
def test_modes(engine: Engine, transport: Transport, mode: str) -> None:
    with guest(engine, transport, "mov al, 0x5a; out 0x80, al; in al, 0x81; hlt", mode) as vcpu:
        assert vcpu.expect(Reason.PORT).data == b"\x5a"
        vcpu.expect(Reason.PORT)
        vcpu.reply.set_value(0xA5)
        ran_to_end(vcpu)
        assert vcpu.scalar("rax") & 0xFF == 0xA5


def test_ring_3_computes_and_exits(engine: Engine, transport: Transport) -> None:
    source = f"mov rax, 6; imul rax, rax, 7; mov [{HOLE}], rax; mov rbx, [{HOLE}]; jmp ."
    with guest(engine, transport, source, "user") as vcpu:
        assert vcpu.expect(Reason.MMIO).value == 42
        vcpu.expect(Reason.MMIO)
        vcpu.reply.set_value(99)
        vcpu.start()
        vcpu.pause()
        vcpu.wait()
        assert vcpu.reason == Reason.PAUSED
        assert vcpu.scalar("rbx") == 99


def test_registers_are_not_valid_in_the_middle_of_an_instruction(
    engine: Engine, transport: Transport
) -> None:
    with guest(engine, transport, "in al, 0x60; hlt") as vcpu:
        vcpu.want_all()
        vcpu.expect(Reason.PORT)
        assert vcpu.exit.masks == (0, 0)
        vcpu.expect(Reason.HLT)
        assert vcpu.exit.register("rip") == ORIGIN + 2


def test_hlt_stands_at_the_instruction(engine: Engine, transport: Transport) -> None:
    with guest(engine, transport, "nop; hlt") as vcpu:
        exit_ = vcpu.expect(Reason.HLT)
        assert exit_.flags & ExitFlag.IP_VALID
        assert (exit_.ip, exit_.instruction_length) == (ORIGIN + 1, 1)
        assert vcpu.fetch("rip", "activity") == {"rip": ORIGIN + 1, "activity": Activity.HALTED}


def test_two_vcpus_share_memory(engine: Engine, transport: Transport) -> None:
    engine.need(Capability.SMP)
    source = "mov ecx, 1000; 1: lock inc dword ptr [0x3000]; loop 1b; hlt"
    with guest(engine, transport, source) as first:
        assert first.memory
        second = Vcpu(engine, transport, 1)
        second.begin()
        first.start()
        second.start()
        for vcpu in (first, second):
            vcpu.wait()
            assert vcpu.reason == Reason.HLT
        assert first.memory[0x3000:0x3004] == (2000).to_bytes(4, "little")
        second.close()


def test_fpu_state_moves(engine: Engine, transport: Transport) -> None:
    engine.need(Capability.FPU)
    with guest(engine, transport, "hlt; hlt") as vcpu:
        vcpu.expect(Reason.HLT)
        assert vcpu.fetch("fpu") == {}
        assert vcpu.exit.masks == (0, 1 << 32)
        area = bytearray(vcpu.fpu)
        area[XMM0] = bytes(range(16))
        area[512] |= 2  # XSTATE_BV: SSE
        vcpu.charge_fpu(bytes(area).ljust(FPU_BYTES, b"\0"))
        vcpu.expect(Reason.HLT)
        vcpu.fetch("fpu")
        assert vcpu.fpu[XMM0] == bytes(range(16))


def test_a_refused_reply_leaves_fpu_state_that_waits_alone(
    engine: Engine, transport: Transport
) -> None:
    """Charged at the first of an instruction's two exits; the reply to the second is refused."""
    engine.need(Capability.FPU)
    with guest(engine, transport, f"mov [{HOLE + 0xFFE}], eax; hlt; hlt") as vcpu:
        vcpu.expect(Reason.MMIO)
        vcpu.charge_fpu(fpu_with_xmm0(b"\x11" * 16))
        vcpu.expect(Reason.MMIO)
        vcpu.charge_fpu(fpu_with_xmm0(b"\x22" * 16))
        vcpu.reply.set_flags(0x80)
        vcpu.expect(Reason.INVALID_STATE)
        vcpu.expect(Reason.HLT)
        vcpu.fetch("fpu")
        assert vcpu.fpu[XMM0] == b"\x11" * 16


def fpu_with_xmm0(value: bytes) -> bytes:
    """An FPU area that is otherwise initial: SDM vol. 1, 13.4."""
    area = bytearray(FPU_BYTES)
    area[0:2] = (0x37F).to_bytes(2, "little")
    area[24:28] = (0x1F80).to_bytes(4, "little")
    area[XMM0] = value
    area[512] = 3  # XSTATE_BV: x87, SSE
    return bytes(area)


def test_memory_is_what_both_see(engine: Engine, transport: Transport) -> None:
    source = "mov eax, [0x2000]; inc eax; mov [0x2004], eax; hlt"
    with guest(engine, transport, source) as vcpu:
        assert vcpu.memory
        vcpu.memory[0x2000:0x2004] = (41).to_bytes(4, "little")
        ran_to_end(vcpu)
        assert vcpu.memory[0x2004:0x2008] == (42).to_bytes(4, "little")
        assert len(vcpu.memory) == RAM
