"""What the VMM answers to an exit: the VMM's half of the page, and what of it has to be undone once
the engine has taken it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from dataspace.registers import Segment
from dataspace.vcpu_page import (
    DATA_BYTES,
    MASK_AT,
    REPLY_FLAGS_AT,
    REPLY_VALUE_AT,
    REPLY_WANTED_AT,
    REPLY_WRITTEN_AT,
    InjectType,
    ReplyFlag,
    VmmHalf,
)

ALL_ONES: Final = 0xFFFFFFFFFFFFFFFF
FLOATING: Final = b"\xff" * DATA_BYTES

_FLAGS: Final = REPLY_FLAGS_AT // 4
_VALUE: Final = REPLY_VALUE_AT // 8
_WANTED: Final = REPLY_WANTED_AT // 8
_RECORD: Final = slice(REPLY_FLAGS_AT // 8, REPLY_WRITTEN_AT // 8)


class Reply:
    """The reply being made. Between exits it says: run on; what the guest reads floats high.

    Two marks tell what was written, so that the common exit costs nothing: `answered` for the value
    alone, `dirty` for anything else.
    """

    __slots__ = ("answered", "dirty", "half", "u64")

    def __init__(self, half: VmmHalf) -> None:
        self.half = half
        self.u64 = half.u64
        self.renew()

    def renew(self) -> None:
        """The engine took the reply: begin the next. The wanted registers stay."""
        self.half.clear_reply()
        self.half.set_data(FLOATING)
        self.half.set_value(ALL_ONES)
        self.dirty = self.answered = False

    def renew_value(self) -> None:
        """As `renew`, where `answered` is the only mark."""
        self.u64[_VALUE] = ALL_ONES
        self.answered = False

    def set_value(self, value: int) -> None:
        """What the guest reads, at most 8 bytes in all. ValueError beyond 64 bits."""
        self.u64[_VALUE] = value
        self.answered = True

    def set_data(self, data: bytes) -> None:
        """What the guest reads, as bytes, at most 256. ValueError beyond."""
        self.dirty = True
        self.half.set_data(data)

    @property
    def flags(self) -> int:
        """REPLY_* as they stand."""
        return self.half.u32[_FLAGS]

    def set_flag(self, flag: ReplyFlag) -> None:
        """Add a flag."""
        self.dirty = True
        self.half.set_flags(self.flags | flag)

    def clear_flag(self, flag: ReplyFlag) -> None:
        """Take a flag back."""
        self.half.set_flags(self.flags & ~flag)

    def inject(self, kind: InjectType, vector: int, error_code: int | None = None) -> None:
        """Inject an event with this run; the last call counts. ValueError beyond vector 255."""
        self.dirty = True
        self.half.inject(kind, vector, error_code)

    def charge(self, name: str, value: int | Segment) -> None:
        """Write a register with this run. KeyError, ValueError, TypeError: see `VmmHalf.charge`."""
        self.dirty = True
        self.half.charge(name, value)

    def charge_fpu(self) -> None:
        """Take over the FPU area with this run."""
        self.dirty = True
        self.half.charge_fpu()

    def set_breakpoints(self, addresses: Iterable[int], control: int) -> None:
        """Replace the VMM's breakpoints with this run. ValueError: see the half's method."""
        self.half.set_breakpoints(addresses, control)
        self.set_flag(ReplyFlag.BREAKPOINTS)

    def written(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Guest memory that was written since the last run."""
        self.dirty = True
        self.half.written(ranges)

    @contextmanager
    def asking(self, scalars: int, segments: int) -> Iterator[None]:
        """While in here the reply asks for these registers, besides those that are wanted anyway,
        and does nothing else. What was answered so far comes back after."""
        kept = self.u64[_RECORD].tobytes(), self.half.masks
        want0, want1 = self.wanted
        self.half.clear_reply()
        self.half.want(want0 | scalars, want1 | segments)
        self.half.set_flags(ReplyFlag.FETCH)
        try:
            yield
        finally:
            self.u64[_RECORD] = memoryview(kept[0]).cast("Q")
            self.u64[MASK_AT // 8], self.u64[MASK_AT // 8 + 1] = kept[1]

    @property
    def wanted(self) -> tuple[int, int]:
        """The masks of the registers that come with every exit."""
        return self.u64[_WANTED], self.u64[_WANTED + 1]
