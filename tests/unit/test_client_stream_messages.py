"""Halves of a page as messages and back: what the library makes of them, core undoes, word by word."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from vmsession.v1 import vcpu_pb2 as pb

from core_service.engine.protocol import Exit
from core_service.rpc.exits import exit_message, fpu_area, reply_half, wanted_mask
from dataspace.registers import SCALARS, SEGMENTS, Segment
from dataspace.vcpu_page import (
    DATA_AT,
    DEBUG_AT,
    EXIT_FLAGS_AT,
    EXIT_REASON_AT,
    FPU_BYTES,
    HALF_BYTES,
    MASK_AT,
    REPLY_FLAGS_AT,
    REPLY_INJECTION_AT,
    REPLY_WRITTEN_AT,
    REPLY_WRITTEN_COUNT_AT,
    WRITTEN_ALL,
    EngineHalf,
    ExitFlag,
    InjectType,
    Reason,
    ReplyFlag,
    ReplyRefusal,
    VmmHalf,
    mask,
)
from vmm_client.stream_messages import (
    Inexpressible,
    reply_message,
    wanted_masks,
    wanted_names,
    write_exit,
)

FPU = bytes(n % 251 for n in range(1088))
ALL_FLAGS = sum(ReplyFlag)
MESSAGE_FLAGS = sum(ExitFlag)


def vmm_half() -> VmmHalf:
    return VmmHalf(bytearray(HALF_BYTES))


def test_core_reads_the_reply_that_stands_in_the_page() -> None:
    half = vmm_half()
    half.set_flags(ALL_FLAGS)
    half.set_data(bytes(range(200)))
    half.inject(InjectType.EXCEPTION, 14, 0xFFFFFFFF)
    half.want(*mask(("rax", "cs", "fpu")))
    half.written([(n << 40, n + 1) for n in range(8)])
    half.set_breakpoints([0x1000, 0x2000, 0x3008, 0x4], 0xD9F90055)
    for n, name in enumerate(SCALARS):
        half.charge(name, n << 56 | 1)
    for n, name in enumerate(SEGMENTS):
        half.charge(name, Segment(n, 0xA09B, 0xFFFFFFFF, n << 40))
    half.charge_fpu()
    reader = EngineHalf(half.u8)
    reply = reply_message(reader, FPU, 7, 200)
    reply.wanted.extend(wanted_names(wanted_masks(reader)))
    assert reply.sequence == 7
    assert reply_half(reply, wanted_mask(reply.wanted)) == bytes(half.u8)
    assert fpu_area(reply.state, len(FPU)) == FPU.ljust(FPU_BYTES, b"\0")


@pytest.mark.parametrize("kind", InjectType)
def test_every_kind_of_event_is_told(kind: InjectType) -> None:
    half = vmm_half()
    half.inject(kind, 0x1F)
    assert reply_half(reply_message(EngineHalf(half.u8), b"", 1, 0), (0, 0)) == bytes(half.u8)


def test_a_plain_reply_says_nothing() -> None:
    assert reply_message(EngineHalf(bytearray(HALF_BYTES)), b"", 3, 0) == pb.Reply(sequence=3)


def test_a_value_is_as_long_as_the_guest_reads() -> None:
    half = vmm_half()
    half.set_value(0x1122334455667788)
    assert reply_message(EngineHalf(half.u8), b"", 1, 2).data == bytes.fromhex("8877")


def test_all_memory_written_is_one_range() -> None:
    half = vmm_half()
    half.u32[REPLY_WRITTEN_COUNT_AT // 4] = WRITTEN_ALL
    half.u64[REPLY_WRITTEN_AT // 8] = 5
    written = reply_message(EngineHalf(half.u8), b"", 1, 0).written
    assert [(each.gpa, each.size) for each in written] == [(0, 2**64 - 1)]


def test_nothing_wanted_has_a_name() -> None:
    assert wanted_names((0, 0)) == ["none"]
    assert wanted_mask(wanted_names((0, 0))) == (0, 0)


def poke(at: int, word: int) -> Callable[[VmmHalf], None]:
    def change(half: VmmHalf) -> None:
        half.u32[at // 4] = word

    return change


def debug(control: int) -> Callable[[VmmHalf], None]:
    def change(half: VmmHalf) -> None:
        half.set_flags(ReplyFlag.BREAKPOINTS)
        half.set_breakpoints([], control)

    return change


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (poke(REPLY_FLAGS_AT, 0x80), ReplyRefusal.FLAGS),
        (poke(REPLY_INJECTION_AT, 0x20), ReplyRefusal.INJECTION),
        (poke(REPLY_INJECTION_AT, 0x80000120), ReplyRefusal.INJECTION),
        (poke(REPLY_INJECTION_AT, 0x80001020), ReplyRefusal.INJECTION),
        (poke(REPLY_WRITTEN_COUNT_AT, 9), ReplyRefusal.WRITTEN_COUNT),
        (poke(MASK_AT + 4, 1 << 31), ReplyRefusal.REGISTERS),
        (poke(MASK_AT + 8, 1 << 10), ReplyRefusal.REGISTERS),
        (debug(0x20001), ReplyRefusal.BREAKPOINTS),  # R/W 2: I/O
        (debug(0x40001), ReplyRefusal.BREAKPOINTS),  # two bytes of an instruction
        (debug(0x10000), ReplyRefusal.BREAKPOINTS),  # a condition without a breakpoint
        (debug(0x400), ReplyRefusal.BREAKPOINTS),
        (debug(0x4), ReplyRefusal.BREAKPOINTS),  # the second alone
    ],
)
def test_what_no_message_can_say_is_named_as_the_engine_would(
    change: Callable[[VmmHalf], None], check: ReplyRefusal
) -> None:
    half = vmm_half()
    change(half)
    with pytest.raises(Inexpressible) as refused:
        reply_message(EngineHalf(half.u8), b"", 1, 0)
    assert refused.value.check is check


def exit_half(reason: Reason, *, flags: int = 0, size: int = 0, count: int = 0) -> VmmHalf:
    """An engine's half with a value in each of its words."""
    half = vmm_half()
    for at in range(EXIT_REASON_AT // 8, EXIT_REASON_AT // 8 + 9):
        half.u64[at] = at << 32 | 0x00000001
    half.u32[EXIT_REASON_AT // 4] = reason
    half.u32[EXIT_FLAGS_AT // 4] = flags
    half.u32[0x98 // 4], half.u32[0x9C // 4] = size, count
    half.u32[0xAC // 4] = 1  # injection TAKEN
    half.u32[0xB4 // 4] = 16  # bytes of an instruction
    half.u8[DATA_AT : DATA_AT + 256] = bytes(range(256))
    return half


def travelled(half: VmmHalf, fpu: bytes = b"") -> tuple[EngineHalf, bytes]:
    """What arrives at the VMM of an exit, by core's message and the library's half."""
    arrived, area = EngineHalf(bytearray(HALF_BYTES)), bytearray(FPU_BYTES)
    write_exit(exit_message(Exit(0, bytes(half.u8), fpu)), arrived, memoryview(area))
    return arrived, bytes(area)


@pytest.mark.parametrize(
    ("reason", "size", "count"),
    [(Reason.PORT, 1, 256), (Reason.MMIO, 8, 1), (Reason.MSR, 0, 0), (Reason.TPR, 0, 0)],
)
def test_an_exit_arrives_word_by_word(reason: Reason, size: int, count: int) -> None:
    flags = MESSAGE_FLAGS & ~ExitFlag.READ
    half = exit_half(reason, flags=flags, size=size, count=count)
    told, arrived = EngineHalf(half.u8), travelled(half)[0]
    for name in ("reason", "flags", "address", "size", "count", "ip", "instruction_length"):
        assert getattr(arrived, name) == getattr(told, name), name
    for name in ("injection", "detail", "instruction_bytes"):
        assert getattr(arrived, name) == getattr(told, name), name
    assert arrived.data == told.data
    if size * count <= 8:
        assert arrived.value == told.value


@pytest.mark.parametrize("flag", ExitFlag)
def test_every_flag_arrives(flag: ExitFlag) -> None:
    assert travelled(exit_half(Reason.HLT, flags=flag))[0].flags == flag


def test_registers_and_the_fpu_area_arrive_and_those_before_are_no_longer_valid() -> None:
    half = exit_half(Reason.HLT)
    for n, name in enumerate(SCALARS):
        half.charge(name, 1 << 63 | n)
    for n, name in enumerate(SEGMENTS):
        half.charge(name, Segment(n, 0xA09B, 0xFFFFFFFF, n << 40))
    half.charge_fpu()
    half.u32[0x14 // 4] = len(FPU)
    arrived, area = travelled(half, FPU)
    assert arrived.registers() == EngineHalf(half.u8).registers()
    assert (arrived.masks, arrived.fpu_size, area[: len(FPU)]) == (half.masks, len(FPU), FPU)
    write_exit(pb.Exit(reason=pb.EXIT_REASON_HLT), arrived, memoryview(bytearray(FPU_BYTES)))
    assert (arrived.masks, arrived.fpu_size) == ((0, 0), len(FPU))


@pytest.mark.parametrize(
    "exit_",
    [
        pb.Exit(data=bytes(257)),
        pb.Exit(instruction_bytes=bytes(17)),
        pb.Exit(state=pb.VcpuState(fpu=bytes(FPU_BYTES + 1))),
        pb.Exit(state=pb.VcpuState(cs=pb.Segment(attributes=1 << 16))),
        pb.Exit(state=pb.VcpuState(tr=pb.Segment(selector=1 << 16))),
    ],
)
def test_what_no_half_can_hold_is_an_error(exit_: pb.Exit) -> None:
    with pytest.raises(ValueError, match=r"bytes where|invalid value|out of range"):
        write_exit(exit_, EngineHalf(bytearray(HALF_BYTES)), memoryview(bytearray(FPU_BYTES)))


def test_a_malformed_debug_address_is_refused_by_its_check() -> None:
    half = vmm_half()
    half.set_flags(ReplyFlag.BREAKPOINTS)
    half.set_breakpoints([0x1001], 0xD0001)  # four bytes, written, at an odd address
    assert half.u64[DEBUG_AT // 8] == 0x1001
    with pytest.raises(Inexpressible) as refused:
        reply_message(EngineHalf(half.u8), b"", 1, 0)
    assert refused.value.check is ReplyRefusal.BREAKPOINTS
