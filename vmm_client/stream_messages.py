"""The two halves of a vCPU page as the messages of the stream transport, `vcpu.proto`."""

from __future__ import annotations

from typing import Final

from vmsession.v1 import vcpu_pb2 as pb

from dataspace.registers import SCALAR_INDEX, SEGMENT_INDEX, Segment
from dataspace.vcpu_page import (
    ALL_SCALARS,
    ALL_SEGMENTS,
    BREAKPOINTS,
    DATA_AT,
    DATA_BYTES,
    DEBUG_AT,
    EXIT_ADDRESS_AT,
    EXIT_BYTES_AT,
    EXIT_BYTES_SIZE_AT,
    EXIT_COUNT_AT,
    EXIT_DETAIL_AT,
    EXIT_FLAGS_AT,
    EXIT_INJECTION_AT,
    EXIT_IP_AT,
    EXIT_LENGTH_AT,
    EXIT_REASON_AT,
    EXIT_SIZE_AT,
    EXIT_VALUE_AT,
    FPU_BIT,
    FPU_BYTES,
    FPU_SIZE_AT,
    INJECT_ERROR_CODE,
    INJECT_TYPE_SHIFT,
    INJECT_VALID,
    MASK_AT,
    REPLY_FLAGS_AT,
    REPLY_INJECTION_AT,
    REPLY_INJECTION_ERROR_AT,
    REPLY_VALUE_AT,
    REPLY_WANTED_AT,
    REPLY_WRITTEN_AT,
    REPLY_WRITTEN_COUNT_AT,
    SCALAR_AT,
    SEGMENT_AT,
    WRITTEN_ALL,
    WRITTEN_RANGES,
    EngineHalf,
    ExitFlag,
    InjectType,
    ReplyFlag,
    ReplyRefusal,
    mask,
    names,
)
from vmm_client.breakpoints import BreakpointKind, parse

ALL_REGISTERS: Final = ALL_SCALARS, ALL_SEGMENTS | 1 << FPU_BIT
ALL_FLAGS: Final = sum(ReplyFlag)
INJECT_FIELDS: Final = INJECT_VALID | INJECT_ERROR_CODE | 7 << INJECT_TYPE_SHIFT | 0xFF
EVERYTHING: Final = (0, (1 << 64) - 1)
BYTES: Final = 16  # of an instruction

INJECTIONS: Final[dict[int, pb.InjectionType.ValueType]] = {
    InjectType.INTERRUPT: pb.INJECTION_TYPE_INTERRUPT,
    InjectType.NMI: pb.INJECTION_TYPE_NMI,
    InjectType.EXCEPTION: pb.INJECTION_TYPE_EXCEPTION,
}
KINDS: Final = {
    BreakpointKind.EXECUTE: pb.BREAKPOINT_KIND_EXECUTE,
    BreakpointKind.WRITE: pb.BREAKPOINT_KIND_WRITE,
    BreakpointKind.ACCESS: pb.BREAKPOINT_KIND_ACCESS,
}


class Inexpressible(Exception):  # noqa: N818 - the engine's refusal, seen before it is asked
    """A reply in the page that no message can say; `check` is the one that it fails in an engine."""

    def __init__(self, check: ReplyRefusal) -> None:
        super().__init__(check.name)
        self.check = check


def reply_message(half: EngineHalf, fpu: bytes, sequence: int, data: int) -> pb.Reply:
    """The reply that stands in a VMM's half, to the exit with this number, but for `wanted`.

    `fpu` is the charged FPU area, `data` how many bytes the exit asks for. Raises Inexpressible.
    """
    flags = half.u32[REPLY_FLAGS_AT // 4]
    if flags & ~ALL_FLAGS:
        raise Inexpressible(ReplyRefusal.FLAGS)
    return pb.Reply(
        sequence=sequence,
        data=_data(half, data),
        fault=bool(flags & ReplyFlag.FAULT),
        complete=bool(flags & ReplyFlag.COMPLETE),
        fetch=bool(flags & ReplyFlag.FETCH),
        withdraw_window=bool(flags & ReplyFlag.WITHDRAW_WINDOW),
        injection=_injection(half),
        state=_charged(half, fpu),
        written=_written(half),
        step=bool(flags & ReplyFlag.STEP),
        nmi_window=bool(flags & ReplyFlag.NMI_WINDOW),
        breakpoints=_breakpoints(half) if flags & ReplyFlag.BREAKPOINTS else None,
    )


def wanted_masks(half: EngineHalf) -> tuple[int, int]:
    """The registers that a VMM's half asks for."""
    words = half.u64[REPLY_WANTED_AT // 8 : REPLY_WANTED_AT // 8 + 2]
    return words[0] & ALL_REGISTERS[0], words[1] & ALL_REGISTERS[1]


def wanted_names(masks: tuple[int, int]) -> list[str]:
    """These masks as `Reply.wanted` has them."""
    wanted = [*names(*masks), *_fpu_name(masks)]
    return wanted or ["none"]


def _fpu_name(masks: tuple[int, int]) -> list[str]:
    return ["fpu"] if masks[1] >> FPU_BIT & 1 else []


def _data(half: EngineHalf, length: int) -> bytes:
    at = REPLY_VALUE_AT if length <= 8 else DATA_AT
    return bytes(half.u8[at : at + length])


def _injection(half: EngineHalf) -> pb.Injection | None:
    event = half.u32[REPLY_INJECTION_AT // 4]
    if not event:
        return None
    kind = INJECTIONS.get(event >> INJECT_TYPE_SHIFT & 7)
    if kind is None or event & ~INJECT_FIELDS or not event & INJECT_VALID:
        raise Inexpressible(ReplyRefusal.INJECTION)
    error = half.u32[REPLY_INJECTION_ERROR_AT // 4] if event & INJECT_ERROR_CODE else None
    return pb.Injection(type=kind, vector=event & 0xFF, error_code=error)


def _written(half: EngineHalf) -> list[pb.WrittenRange]:
    count = half.u32[REPLY_WRITTEN_COUNT_AT // 4]
    if count == WRITTEN_ALL:
        return [pb.WrittenRange(gpa=EVERYTHING[0], size=EVERYTHING[1])]
    if count > WRITTEN_RANGES:
        raise Inexpressible(ReplyRefusal.WRITTEN_COUNT)
    first = REPLY_WRITTEN_AT // 8
    words = half.u64[first : first + 2 * count]
    return [pb.WrittenRange(gpa=words[n], size=words[n + 1]) for n in range(0, 2 * count, 2)]


def _charged(half: EngineHalf, fpu: bytes) -> pb.VcpuState | None:
    charged = half.masks
    if not any(charged):
        return None
    if any(masks & ~known for masks, known in zip(charged, ALL_REGISTERS, strict=True)):
        raise Inexpressible(ReplyRefusal.REGISTERS)
    state = pb.VcpuState()
    for name, value in half.registers().items():
        if isinstance(value, Segment):
            getattr(state, name).CopyFrom(pb.Segment(**value._asdict()))
        else:
            setattr(state, name, value)
    if charged[1] >> FPU_BIT & 1:
        state.fpu = fpu
    return state


def _breakpoints(half: EngineHalf) -> pb.Breakpoints:
    addresses = half.u64[DEBUG_AT // 8 : DEBUG_AT // 8 + BREAKPOINTS]
    try:
        parsed = parse(addresses.tolist(), half.u32[DEBUG_AT // 4 + 2 * BREAKPOINTS])
    except ValueError:
        raise Inexpressible(ReplyRefusal.BREAKPOINTS) from None
    return pb.Breakpoints(
        breakpoints=[
            pb.Breakpoint(address=each.address, kind=KINDS[each.kind], size=each.size)
            for each in parsed
        ]
    )


def write_exit(exit_: pb.Exit, half: EngineHalf, fpu: memoryview) -> None:
    """Write an exit into an engine's half and its FPU area, but for the counters.

    Raises ValueError for what no engine's half can hold.
    """
    words, longs = half.u32, half.u64
    words[EXIT_REASON_AT // 4] = exit_.reason
    words[EXIT_FLAGS_AT // 4] = _exit_flags(exit_)
    longs[EXIT_ADDRESS_AT // 8] = exit_.address
    words[EXIT_SIZE_AT // 4] = exit_.size
    words[EXIT_COUNT_AT // 4] = exit_.count
    longs[EXIT_IP_AT // 8] = exit_.ip
    words[EXIT_LENGTH_AT // 4] = exit_.instruction_length
    words[EXIT_INJECTION_AT // 4] = exit_.injection
    words[EXIT_DETAIL_AT // 4] = exit_.detail
    words[EXIT_BYTES_SIZE_AT // 4] = len(exit_.instruction_bytes)
    _write_bytes(half.u8[EXIT_BYTES_AT : EXIT_BYTES_AT + BYTES], exit_.instruction_bytes)
    _write_data(half, exit_.data)
    _write_state(half, fpu, exit_.state)


def _exit_flags(exit_: pb.Exit) -> int:
    return (
        ExitFlag.READ * exit_.read
        | ExitFlag.MID_INSTRUCTION * exit_.mid_instruction
        | ExitFlag.INTERRUPTIBLE * exit_.interruptible
        | ExitFlag.IF * exit_.interrupt_flag
        | ExitFlag.FETCH * exit_.fetch
        | ExitFlag.WRITE_PROTECTED * exit_.write_protected
        | ExitFlag.IP_VALID * exit_.ip_valid
        | ExitFlag.NMI_OPEN * exit_.nmi_open
    )


def _write_bytes(place: memoryview, data: bytes) -> None:
    if len(data) > len(place):
        raise ValueError(f"{len(data)} bytes where {len(place)} have room")
    place[: len(data)] = data


def _write_data(half: EngineHalf, data: bytes) -> None:
    if len(data) <= 8:
        half.u64[EXIT_VALUE_AT // 8] = int.from_bytes(data, "little")
    else:
        _write_bytes(half.u8[DATA_AT : DATA_AT + DATA_BYTES], data)


def _write_state(half: EngineHalf, fpu: memoryview, state: pb.VcpuState) -> None:
    present = state.ListFields()
    for field, value in present:
        if field.name == "fpu":
            _write_bytes(fpu[:FPU_BYTES], value)
            half.u32[FPU_SIZE_AT // 4] = len(value)
        elif field.name in SCALAR_INDEX:
            half.u64[SCALAR_AT // 8 + SCALAR_INDEX[field.name]] = value
        else:
            _write_segment(half, SEGMENT_AT + 16 * SEGMENT_INDEX[field.name], value)
    valid = mask(field.name for field, _ in present)
    half.u64[MASK_AT // 8], half.u64[MASK_AT // 8 + 1] = valid


def _write_segment(half: EngineHalf, at: int, segment: pb.Segment) -> None:
    half.u16[at // 2] = segment.selector
    half.u16[at // 2 + 1] = segment.attributes
    half.u32[at // 4 + 1] = segment.limit
    half.u64[at // 8 + 1] = segment.base
