"""Exits and replies between messages and page halves, both ways."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from vmsession.v1 import vcpu_pb2
from vmsession.v1 import vm_session_pb2 as pb

from core_service.engine.protocol import CpuidLeaf, Exit, MsrRange
from core_service.refusal import Refusal
from core_service.rpc.cpuid import cpuid_table, leaf_messages
from core_service.rpc.exits import exit_message, fpu_area, reply_half, wanted_mask
from core_service.rpc.msr_filter import msr_ranges
from dataspace.vcpu_page import (
    DEBUG_AT,
    EXIT_DETAIL_AT,
    EXIT_FLAGS_AT,
    EXIT_IP_AT,
    EXIT_REASON_AT,
    EXIT_VALUE_AT,
    FPU_BIT,
    FPU_BYTES,
    FPU_SIZE_AT,
    HALF_BYTES,
    MASK_AT,
    REPLY_FLAGS_AT,
    EngineHalf,
    ExitFlag,
    Reason,
    ReplyFlag,
)

Breakpoint = vcpu_pb2.Breakpoint
EXECUTE = vcpu_pb2.BREAKPOINT_KIND_EXECUTE
WRITE = vcpu_pb2.BREAKPOINT_KIND_WRITE
ACCESS = vcpu_pb2.BREAKPOINT_KIND_ACCESS


def exit_of(reason: Reason, flags: int = 0, **words: int) -> vcpu_pb2.Exit:
    half = EngineHalf(bytearray(HALF_BYTES))
    half.u32[EXIT_REASON_AT // 4] = reason
    half.u32[EXIT_FLAGS_AT // 4] = flags
    half.u64[EXIT_VALUE_AT // 8] = words.get("value", 0)
    half.u64[EXIT_IP_AT // 8] = words.get("ip", 0)
    half.u32[EXIT_DETAIL_AT // 4] = words.get("detail", 0)
    return exit_message(Exit(0, bytes(half.u8), b""))


@pytest.mark.parametrize(
    ("flag", "field"),
    [
        (ExitFlag.READ, "read"),
        (ExitFlag.MID_INSTRUCTION, "mid_instruction"),
        (ExitFlag.INTERRUPTIBLE, "interruptible"),
        (ExitFlag.IF, "interrupt_flag"),
        (ExitFlag.FETCH, "fetch"),
        (ExitFlag.WRITE_PROTECTED, "write_protected"),
        (ExitFlag.IP_VALID, "ip_valid"),
        (ExitFlag.NMI_OPEN, "nmi_open"),
    ],
)
def test_each_flag_of_an_exit_is_one_field(flag: ExitFlag, field: str) -> None:
    message = exit_of(Reason.HLT, flag)
    told = {told.name for told, value in message.ListFields() if value is True}
    assert told == {field}


def test_every_flag_is_told() -> None:
    message = exit_of(Reason.HLT, ExitFlag(sum(ExitFlag)))
    assert sum(value is True for _, value in message.ListFields()) == len(ExitFlag)


@pytest.mark.parametrize("reason", [Reason.MSR, Reason.TPR])
def test_the_value_of_a_register_is_eight_bytes(reason: Reason) -> None:
    assert exit_of(reason, value=9).data == bytes([9, 0, 0, 0, 0, 0, 0, 0])
    assert exit_of(reason, ExitFlag.READ, value=9).data == b""


def test_debug_exit() -> None:
    message = exit_of(Reason.DEBUG, ExitFlag.IP_VALID, ip=0x1000, detail=0x4002)
    assert message.reason == vcpu_pb2.EXIT_REASON_DEBUG
    assert (message.ip, message.ip_valid, message.detail) == (0x1000, True, 0x4002)


def test_fpu_of_an_exit_has_the_engines_size() -> None:
    half = EngineHalf(bytearray(HALF_BYTES))
    half.u32[FPU_SIZE_AT // 4] = 832
    half.u64[MASK_AT // 8 + 1] = 1 << FPU_BIT
    area = bytes(range(256)) * (FPU_BYTES // 256)
    message = exit_message(Exit(0, bytes(half.u8), area))
    assert message.state == vcpu_pb2.VcpuState(fpu=area[:832])


def words(reply: vcpu_pb2.Reply) -> memoryview:
    return memoryview(reply_half(reply, (0, 0))).cast("I")


@pytest.mark.parametrize(
    ("reply", "flag"),
    [
        (vcpu_pb2.Reply(complete=True), ReplyFlag.COMPLETE),
        (vcpu_pb2.Reply(fetch=True), ReplyFlag.FETCH),
        (vcpu_pb2.Reply(fault=True), ReplyFlag.FAULT),
        (vcpu_pb2.Reply(withdraw_window=True), ReplyFlag.WITHDRAW_WINDOW),
        (vcpu_pb2.Reply(step=True), ReplyFlag.STEP),
        (vcpu_pb2.Reply(nmi_window=True), ReplyFlag.NMI_WINDOW),
        (vcpu_pb2.Reply(breakpoints=vcpu_pb2.Breakpoints()), ReplyFlag.BREAKPOINTS),
        (vcpu_pb2.Reply(), ReplyFlag(0)),
    ],
)
def test_each_wish_of_a_reply_is_one_flag(reply: vcpu_pb2.Reply, flag: ReplyFlag) -> None:
    assert words(reply)[REPLY_FLAGS_AT // 4] == flag


def breakpoints(*wanted: vcpu_pb2.Breakpoint) -> vcpu_pb2.Reply:
    return vcpu_pb2.Reply(breakpoints=vcpu_pb2.Breakpoints(breakpoints=wanted))


def test_breakpoints_in_the_layout_of_dr7() -> None:
    half = reply_half(
        breakpoints(
            Breakpoint(address=0x1001, kind=EXECUTE),
            Breakpoint(address=0x2002, kind=WRITE, size=2),
            Breakpoint(address=0x3004, kind=ACCESS, size=4),
            Breakpoint(address=0xFFFFFFFFFFFFFFF8, kind=WRITE, size=8),
        ),
        (0, 0),
    )
    debug = struct.unpack_from("<4QI", half, DEBUG_AT)
    # from bit 16: R/W and LEN of each; bits 0, 2, 4, 6: enabled
    assert debug == (0x1001, 0x2002, 0x3004, 0xFFFFFFFFFFFFFFF8, 0x9F50_0055)


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ([Breakpoint(kind=EXECUTE)] * 5, "breakpoints"),
        ([Breakpoint(address=1)], "breakpoints[0].kind"),
        ([Breakpoint(kind=4)], "breakpoints[0].kind"),  # type: ignore[arg-type] # not of the enum
        ([Breakpoint(kind=EXECUTE), Breakpoint(kind=EXECUTE, size=2)], "breakpoints[1].size"),
        ([Breakpoint(kind=WRITE, size=3)], "breakpoints[0].size"),
        ([Breakpoint(kind=WRITE, size=16)], "breakpoints[0].size"),
        ([Breakpoint(kind=ACCESS, size=8, address=4)], "breakpoints[0].address"),
    ],
)
def test_breakpoints_that_cannot_be(wanted: Sequence[vcpu_pb2.Breakpoint], field: str) -> None:
    with pytest.raises(Refusal) as refused:
        reply_half(breakpoints(*wanted), (0, 0))
    assert (refused.value.reason, refused.value.numbers["field"]) == ("INVALID_ARGUMENT", field)


def test_charged_fpu() -> None:
    state = vcpu_pb2.VcpuState(fpu=b"f" * 832)
    half = EngineHalf(reply_half(vcpu_pb2.Reply(state=state), (0, 0)))
    assert half.masks == (0, 1 << FPU_BIT)
    assert fpu_area(state, 832) == b"f" * 832 + bytes(FPU_BYTES - 832)
    assert fpu_area(vcpu_pb2.VcpuState(rax=1), 832) == b""


@pytest.mark.parametrize("size", [0, 831, 833, FPU_BYTES])
def test_fpu_of_another_size(size: int) -> None:
    with pytest.raises(Refusal, match=f"fpu is '{size} bytes': must be the engine's 832 bytes"):
        fpu_area(vcpu_pb2.VcpuState(fpu=bytes(size)), 832)


def test_wanted_fpu() -> None:
    assert wanted_mask(["rcx", "fpu"]) == (2, 1 << FPU_BIT)
    assert wanted_mask(["none"]) == (0, 0)


LEAVES = [pb.CpuidLeaf(function=0, eax=4), pb.CpuidLeaf(function=4, index=0, edx=0xFFFFFFFF)]


def test_cpuid_both_ways() -> None:
    table = cpuid_table(LEAVES)
    assert table == [CpuidLeaf(0, None, 4, 0, 0, 0), CpuidLeaf(4, 0, 0, 0, 0, 0xFFFFFFFF)]
    assert leaf_messages(table) == LEAVES


@pytest.mark.parametrize(
    ("leaves", "field"),
    [
        ([pb.CpuidLeaf(function=function) for function in range(161)], "leaves"),
        ([*LEAVES, pb.CpuidLeaf(function=0)], "leaves[2]"),
        ([*LEAVES, pb.CpuidLeaf(function=4, index=0)], "leaves[2]"),
        ([*LEAVES, pb.CpuidLeaf(function=4)], "leaves[2]"),
        ([*LEAVES, pb.CpuidLeaf(function=0, index=1)], "leaves[2]"),
    ],
)
def test_cpuid_that_cannot_be(leaves: Sequence[pb.CpuidLeaf], field: str) -> None:
    with pytest.raises(Refusal) as refused:
        cpuid_table(leaves)
    assert (refused.value.reason, refused.value.numbers["field"]) == ("INVALID_ARGUMENT", field)


def test_the_largest_cpuid_table() -> None:
    assert len(cpuid_table([pb.CpuidLeaf(function=4, index=index) for index in range(160)])) == 160


def test_msr_ranges_to_the_last_one() -> None:
    wanted = [pb.MsrRange(first=0xFFFFF000, count=4096, read=True)]
    assert msr_ranges(wanted) == [MsrRange(0xFFFFF000, 4096, read=True, write=False)]
    assert len(msr_ranges(wanted * 16)) == 16


@pytest.mark.parametrize(
    ("ranges", "field"),
    [
        ([pb.MsrRange(first=1, count=1, read=True)] * 17, "ranges"),
        ([pb.MsrRange(first=1, count=1)], "ranges[0]"),
        ([pb.MsrRange(first=1)], "ranges[0].count"),
        ([pb.MsrRange(count=4096, read=True), pb.MsrRange(count=4097)], "ranges[1].count"),
        ([pb.MsrRange(first=0xFFFFFFFF, count=2)], "ranges[0].first"),
    ],
)
def test_msr_ranges_that_cannot_be(ranges: Sequence[pb.MsrRange], field: str) -> None:
    with pytest.raises(Refusal) as refused:
        msr_ranges(ranges)
    assert (refused.value.reason, refused.value.numbers["field"]) == ("INVALID_ARGUMENT", field)
