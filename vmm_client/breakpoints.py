"""The VMM's breakpoints, unseen by the guest: `struct vcpu_debug` in `proto/vcpu_page.h`.

Source: Intel SDM volume 3, 17.2.4 (DR7) and 17.2.5 (alignment).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

ADDRESSES: Final = 1 << 64


class BreakpointKind(IntEnum):
    """What a breakpoint waits for; the values are those of R/W in DR7."""

    EXECUTE = 0
    WRITE = 1
    ACCESS = 3


class Breakpoint(NamedTuple):
    """`address` is linear and aligned to `size`, the bytes watched: 1, 2, 4 or 8, and 1 for EXECUTE."""

    address: int
    kind: BreakpointKind = BreakpointKind.EXECUTE
    size: int = 1


LENGTHS: Final = {1: 0, 2: 1, 4: 3, 8: 2}
SIZES: Final = {length: size for size, length in LENGTHS.items()}
EITHER_BIT: Final = 0x55


def control(breakpoints: Iterable[Breakpoint]) -> int:
    """The control word of these breakpoints, in the layout of DR7.

    Raises ValueError for one that the hardware could not have.
    """
    word = 0
    for index, breakpoint_ in enumerate(breakpoints):
        _check(breakpoint_)
        condition = breakpoint_.kind | LENGTHS[breakpoint_.size] << 2
        word |= 1 << 2 * index | condition << 16 + 4 * index
    return word


def parse(addresses: Sequence[int], word: int) -> list[Breakpoint]:
    """The breakpoints of a control word, which may enable them by either bit of a pair.

    Raises ValueError for a malformed word, and for one that leaves a position out.
    """
    enabled = (word | word >> 1) & EITHER_BIT
    breakpoints = [
        Breakpoint(address, BreakpointKind(word >> 16 + 4 * n & 3), SIZES[word >> 18 + 4 * n & 3])
        for n, address in enumerate(addresses)
        if enabled >> 2 * n & 1
    ]
    if control(breakpoints) != word & ~0xFF | enabled:
        raise ValueError(f"control word {word:#x} is malformed, or leaves a position out")
    return breakpoints


def _check(breakpoint_: Breakpoint) -> None:
    address, kind, size = breakpoint_
    if size not in LENGTHS:
        raise ValueError(f"a breakpoint watches 1, 2, 4 or 8 bytes, not {size}")
    if kind is BreakpointKind.EXECUTE and size != 1:
        raise ValueError(f"a breakpoint on execution has size 1, not {size}")
    if not 0 <= address < ADDRESSES or address % size:
        raise ValueError(f"breakpoint at {address:#x}: no 64-bit address aligned to {size}")
