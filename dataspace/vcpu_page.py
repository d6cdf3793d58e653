"""The Python view of the vCPU page, `proto/vcpu_page.h`: the engine's half to read, the VMM's half to
write. Both work on any buffer: on the shared page, and on the halves that the stream transport moves.

Words are read and written through typed memoryviews only: `struct.pack_into` zeroes before it writes,
and a concurrent reader sees that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum, IntFlag
from typing import Final

from typing_extensions import Buffer

from dataspace.registers import (
    SCALAR_INDEX,
    SCALARS,
    SEGMENT_INDEX,
    SEGMENTS,
    Segment,
)

MAGIC: Final = 0x55504356
ABI: Final = 2
HALF_BYTES: Final = 2048
VMM_HALF: Final = 0x800
FPU_VALID: Final = 0x1000
FPU_CHARGED: Final = 0x2000
FPU_BYTES: Final = 4096
PAGE_BYTES: Final = 0x3000
DATA_BYTES: Final = 256
WRITTEN_RANGES: Final = 8
WRITTEN_ALL: Final = 0xFFFFFFFF
FPU_BIT: Final = 32

BREAKPOINTS: Final = 4
DEBUG_STEP: Final = 0x4000  # BS of DR6, in the detail of DEBUG

INJECT_VALID: Final = 0x80000000
INJECT_ERROR_CODE: Final = 0x800
INJECT_TYPE_SHIFT: Final = 8


class Reason(IntEnum):
    """Why the vCPU stopped: `enum vcpu_exit_reason`, documented there."""

    NONE = 0
    STARTUP = 1
    PORT = 2
    MMIO = 3
    MSR = 4
    HLT = 5
    SHUTDOWN = 6
    WINDOW = 7
    NMI_WINDOW = 8
    PAUSED = 9
    COMPLETED = 10
    DEBUG = 11
    MEMORY_FAULT = 12
    INVALID_STATE = 13
    INTERNAL_ERROR = 14
    TPR = 15


class ExitFlag(IntFlag):
    """`EXIT_*` in the header."""

    READ = 0x01
    MID_INSTRUCTION = 0x02
    INTERRUPTIBLE = 0x04
    IF = 0x08
    FETCH = 0x10
    WRITE_PROTECTED = 0x20
    IP_VALID = 0x40
    NMI_OPEN = 0x80


class ReplyFlag(IntFlag):
    """`REPLY_*` in the header."""

    COMPLETE = 0x01
    FETCH = 0x02
    FAULT = 0x04
    WITHDRAW_WINDOW = 0x08
    STEP = 0x10
    NMI_WINDOW = 0x20
    BREAKPOINTS = 0x40


class Injection(IntEnum):
    """What became of the last reply's injection."""

    NONE = 0
    TAKEN = 1
    NOT_TAKEN = 2


class ReplyRefusal(IntEnum):
    """Which check an INVALID_STATE failed, in its detail: `enum vcpu_refusal`, documented there."""

    NONE = 0
    FLAGS = 1
    INJECTION = 2
    WRITTEN_COUNT = 3
    WRITTEN_RANGE = 4
    REGISTERS = 5
    ACTIVITY = 6
    STATE = 7
    BREAKPOINTS = 8


class InjectType(IntEnum):
    """`enum vcpu_inject_type`."""

    INTERRUPT = 0
    NMI = 2
    EXCEPTION = 3


class Activity(IntEnum):
    """Values of the register `activity`."""

    ACTIVE = 0
    HALTED = 1
    SHUTDOWN = 2
    WAIT_FOR_SIPI = 3


# Byte offsets within a half, in the order of the header.
MAGIC_AT: Final = 0x00
ABI_AT: Final = 0x04
SIZE_AT: Final = 0x08
INDEX_AT: Final = 0x0C
TSC_KHZ_AT: Final = 0x10
FPU_SIZE_AT: Final = 0x14
EXIT_SEQ_AT: Final = 0x40
ENGINE_WAITING_AT: Final = 0x44
PAUSE_ACK_AT: Final = 0x48
WINDOW_ACK_AT: Final = 0x4C
EXIT_REASON_AT: Final = 0x80
EXIT_FLAGS_AT: Final = 0x84
EXIT_ADDRESS_AT: Final = 0x88
EXIT_VALUE_AT: Final = 0x90
EXIT_SIZE_AT: Final = 0x98
EXIT_COUNT_AT: Final = 0x9C
EXIT_IP_AT: Final = 0xA0
EXIT_LENGTH_AT: Final = 0xA8
EXIT_INJECTION_AT: Final = 0xAC
EXIT_DETAIL_AT: Final = 0xB0
EXIT_BYTES_SIZE_AT: Final = 0xB4
EXIT_BYTES_AT: Final = 0xB8
RUN_SEQ_AT: Final = 0x00
VMM_WAITING_AT: Final = 0x04
KICK_SEQ_AT: Final = 0x08
PAUSE_SEQ_AT: Final = 0x0C
WINDOW_SEQ_AT: Final = 0x10
REPLY_FLAGS_AT: Final = 0x40
REPLY_INJECTION_AT: Final = 0x44
REPLY_INJECTION_ERROR_AT: Final = 0x48
REPLY_WRITTEN_COUNT_AT: Final = 0x4C
REPLY_VALUE_AT: Final = 0x50
REPLY_WANTED_AT: Final = 0x58
REPLY_WRITTEN_AT: Final = 0x68
DATA_AT: Final = 0x100
MASK_AT: Final = 0x200
SCALAR_AT: Final = 0x210
SEGMENT_AT: Final = 0x410
DEBUG_AT: Final = 0x510


def mask(names: Iterable[str]) -> tuple[int, int]:
    """The two mask words of a set of register names; `fpu` names the FPU area.

    Raises KeyError for a name that is no register.
    """
    scalars = segments = 0
    for name in names:
        if name in SCALAR_INDEX:
            scalars |= 1 << SCALAR_INDEX[name]
        elif name == "fpu":
            segments |= 1 << FPU_BIT
        else:
            segments |= 1 << SEGMENT_INDEX[name]
    return scalars, segments


def names(scalars: int, segments: int) -> Iterator[str]:
    """The register names of two mask words without `fpu`; unknown bits are ignored."""
    yield from (name for index, name in enumerate(SCALARS) if scalars >> index & 1)
    yield from (name for index, name in enumerate(SEGMENTS) if segments >> index & 1)


ALL_SCALARS: Final = (1 << len(SCALARS)) - 1
ALL_SEGMENTS: Final = (1 << len(SEGMENTS)) - 1


class _Half:
    """Typed views of 2048 bytes and the registers in them, which stand alike in both halves."""

    __slots__ = ("u8", "u16", "u32", "u64")

    def __init__(self, buffer: Buffer, at: int = 0) -> None:
        self.u8 = memoryview(buffer).cast("B")[at : at + HALF_BYTES]
        if len(self.u8) != HALF_BYTES:
            raise ValueError(f"half of a vCPU page has {HALF_BYTES} bytes, this has {len(self.u8)}")
        self.u16 = self.u8.cast("H")
        self.u32 = self.u8.cast("I")
        self.u64 = self.u8.cast("Q")

    def release(self) -> None:
        """Let go of the buffer, so that a mapping behind it can be closed."""
        for view in (self.u16, self.u32, self.u64, self.u8):
            view.release()

    def _scalar(self, index: int) -> int:
        return self.u64[SCALAR_AT // 8 + index]

    def _segment(self, index: int) -> Segment:
        at = SEGMENT_AT + 16 * index
        return Segment(
            self.u16[at // 2], self.u16[at // 2 + 1], self.u32[at // 4 + 1], self.u64[at // 8 + 1]
        )

    @property
    def masks(self) -> tuple[int, int]:
        """Which registers stand here: valid in the engine's half, charged in the VMM's."""
        return self.u64[MASK_AT // 8], self.u64[MASK_AT // 8 + 1]


class EngineHalf(_Half):
    """What the engine says: the exit, and the registers that are valid. Only to be read."""

    __slots__ = ()

    @property
    def exit_seq(self) -> int:
        return self.u32[EXIT_SEQ_AT // 4]

    @property
    def pause_ack(self) -> int:
        return self.u32[PAUSE_ACK_AT // 4]

    @property
    def window_ack(self) -> int:
        return self.u32[WINDOW_ACK_AT // 4]

    @property
    def tsc_khz(self) -> int:
        return self.u32[TSC_KHZ_AT // 4]

    @property
    def fpu_size(self) -> int:
        return min(self.u32[FPU_SIZE_AT // 4], FPU_BYTES)

    @property
    def reason(self) -> int:
        return self.u32[EXIT_REASON_AT // 4]

    @property
    def flags(self) -> int:
        return self.u32[EXIT_FLAGS_AT // 4]

    @property
    def address(self) -> int:
        return self.u64[EXIT_ADDRESS_AT // 8]

    @property
    def value(self) -> int:
        return self.u64[EXIT_VALUE_AT // 8]

    @property
    def size(self) -> int:
        return self.u32[EXIT_SIZE_AT // 4]

    @property
    def count(self) -> int:
        return self.u32[EXIT_COUNT_AT // 4]

    @property
    def ip(self) -> int:
        return self.u64[EXIT_IP_AT // 8]

    @property
    def instruction_length(self) -> int:
        return self.u32[EXIT_LENGTH_AT // 4]

    @property
    def injection(self) -> int:
        return self.u32[EXIT_INJECTION_AT // 4]

    @property
    def detail(self) -> int:
        return self.u32[EXIT_DETAIL_AT // 4]

    @property
    def instruction_bytes(self) -> bytes:
        length = min(self.u32[EXIT_BYTES_SIZE_AT // 4], 16)
        return bytes(self.u8[EXIT_BYTES_AT : EXIT_BYTES_AT + length])

    @property
    def data(self) -> bytes:
        """The bytes that a port or MMIO write carries, `size * count` of them."""
        length = min(self.size * self.count, DATA_BYTES)
        at = EXIT_VALUE_AT if length <= 8 else DATA_AT
        return bytes(self.u8[at : at + length])

    def register(self, name: str) -> int | Segment:
        """The value of a register, valid or not. Raises KeyError for an unknown name."""
        if name in SCALAR_INDEX:
            return self._scalar(SCALAR_INDEX[name])
        return self._segment(SEGMENT_INDEX[name])

    def registers(self) -> dict[str, int | Segment]:
        """All valid registers by name."""
        return {name: self.register(name) for name in names(*self.masks)}


class VmmHalf(_Half):
    """What the VMM says: the reply, and the registers it charges. Only to be written."""

    __slots__ = ()

    def clear_reply(self) -> None:
        """Nothing but the sticky `wanted` mask is left: no flags, injection, ranges or registers."""
        self.u32[REPLY_FLAGS_AT // 4] = 0
        self.u32[REPLY_INJECTION_AT // 4] = 0
        self.u32[REPLY_WRITTEN_COUNT_AT // 4] = 0
        self.u64[MASK_AT // 8] = 0
        self.u64[MASK_AT // 8 + 1] = 0

    def set_flags(self, flags: int) -> None:
        self.u32[REPLY_FLAGS_AT // 4] = flags

    def set_value(self, value: int) -> None:
        """The answer to a read of at most 8 bytes. Raises ValueError beyond 64 bits."""
        self.u64[REPLY_VALUE_AT // 8] = value

    def set_data(self, data: bytes) -> None:
        """The answer to a read of `size * count` bytes, at most 256."""
        if len(data) > DATA_BYTES:
            raise ValueError(f"a reply carries at most {DATA_BYTES} bytes, this has {len(data)}")
        if len(data) <= 8:
            self.set_value(int.from_bytes(data, "little"))
        else:
            self.u8[DATA_AT : DATA_AT + len(data)] = data

    def inject(self, kind: InjectType, vector: int, error_code: int | None = None) -> None:
        """Inject an event with the next run. Raises ValueError for a vector beyond 255."""
        if not 0 <= vector <= 255:
            raise ValueError(f"vector {vector} is not within 0..255")
        event = INJECT_VALID | kind << INJECT_TYPE_SHIFT | vector
        if error_code is not None:
            event |= INJECT_ERROR_CODE
            self.u32[REPLY_INJECTION_ERROR_AT // 4] = error_code
        self.u32[REPLY_INJECTION_AT // 4] = event

    def want(self, scalars: int, segments: int) -> None:
        """Registers to deliver with the exits to come; stays until it is set again."""
        self.u64[REPLY_WANTED_AT // 8] = scalars
        self.u64[REPLY_WANTED_AT // 8 + 1] = segments

    def charge(self, name: str, value: int | Segment) -> None:
        """Write a register with the next run. Raises KeyError for an unknown name, ValueError for a
        value beyond its width, TypeError for a segment where a number belongs."""
        if name in SCALAR_INDEX:
            if isinstance(value, Segment):
                raise TypeError(f"{name} takes a number, not a segment")
            index = SCALAR_INDEX[name]
            self.u64[SCALAR_AT // 8 + index] = value
            self.u64[MASK_AT // 8] |= 1 << index
            return
        index = SEGMENT_INDEX[name]
        if not isinstance(value, Segment):
            raise TypeError(f"{name} takes a Segment, not a number")
        at = SEGMENT_AT + 16 * index
        self.u16[at // 2] = value.selector
        self.u16[at // 2 + 1] = value.attributes
        self.u32[at // 4 + 1] = value.limit
        self.u64[at // 8 + 1] = value.base
        self.u64[MASK_AT // 8 + 1] |= 1 << index

    def charge_fpu(self) -> None:
        """The FPU area was written: take it over with the next run."""
        self.u64[MASK_AT // 8 + 1] |= 1 << FPU_BIT

    def set_breakpoints(self, addresses: Iterable[int], control: int) -> None:
        """Up to four linear addresses and their control word, `struct vcpu_debug`; to be sent with
        ReplyFlag.BREAKPOINTS. Raises ValueError for a fifth address, or beyond the words' width."""
        at = DEBUG_AT // 8
        words = [0] * BREAKPOINTS
        for index, address in enumerate(addresses):
            if index == BREAKPOINTS:
                raise ValueError(f"a vCPU has {BREAKPOINTS} breakpoints")
            words[index] = address
        for index, address in enumerate(words):
            self.u64[at + index] = address
        self.u32[DEBUG_AT // 4 + 8] = control

    def written(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Guest-physical ranges (gpa, size) that the VMM wrote since the last run."""
        count = 0
        for gpa, size in ranges:
            if count == WRITTEN_RANGES:
                count = WRITTEN_ALL
                break
            self.u64[REPLY_WRITTEN_AT // 8 + 2 * count] = gpa
            self.u64[REPLY_WRITTEN_AT // 8 + 2 * count + 1] = size
            count += 1
        self.u32[REPLY_WRITTEN_COUNT_AT // 4] = count
