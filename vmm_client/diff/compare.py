"""What differs between two stops."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Final, NamedTuple

from dataspace.registers import Segment
from vmm_client.diff.code import number
from vmm_client.diff.stop import Registers, Stop

BLOCK: Final = 64 << 10
SHOWN: Final = 16  # bytes of memory from the first that differs

# See docs/diff.md for each.
NOT_COMPARED: Final = frozenset(
    {"tsc", "tsc_offset", "apic_base", "dr6", "interruptibility", "activity"}
)
NOT_COMPARED_FLAGS: Final = 0x10000  # RF
PROTECTED: Final = 1  # CR0.PE
UNUSED_SEGMENT: Final = 0x80  # P clear: what else the segment holds is not used


class Difference(NamedTuple):
    """`what` is a register, an exit's field, an access or a memory address; the values in words."""

    what: str
    first: str
    second: str


def differences(
    first: Stop, second: Stop, ignored_flags: int, ignored: frozenset[str]
) -> list[Difference]:
    """Of exits, accesses, and the registers that are valid on both, but those ignored."""
    found = list(_exits(first, second))
    found += (
        difference
        for difference in _registers(
            first.registers, second.registers, ignored_flags | NOT_COMPARED_FLAGS
        )
        if difference.what not in ignored
    )
    found += (
        Difference(name, f"{value:#x}", f"{second.fpu[name]:#x}")
        for name, value in first.fpu.items()
        if second.fpu.get(name, value) != value
    )
    return found


def _exits(first: Stop, second: Stop) -> Iterator[Difference]:
    for position, (one, other) in enumerate(zip_longest(first.accesses, second.accesses)):
        if one != other:
            yield Difference(f"access {position}", str(one or "none"), str(other or "none"))
            break
    if first.reason is not second.reason:
        yield Difference("exit", first.reason.name, second.reason.name)
    elif first.address != second.address:
        yield Difference("exit address", f"{first.address:#x}", f"{second.address:#x}")


def _registers(first: Registers, second: Registers, ignored_flags: int) -> Iterator[Difference]:
    real = not number(first, "cr0") & PROTECTED
    for name in sorted(first.keys() & second.keys() - NOT_COMPARED):
        one, other = first[name], second[name]
        if one == other:
            continue
        if isinstance(one, Segment) or isinstance(other, Segment):
            if _same_segment(name, one, other, real=real):
                continue
        elif name == "rflags" and not (one ^ other) & ~ignored_flags:
            continue
        yield Difference(name, _text(one), _text(other))


def _same_segment(name: str, one: int | Segment, other: int | Segment, real: bool) -> bool:
    assert isinstance(one, Segment)
    assert isinstance(other, Segment)
    if name in ("gdtr", "idtr"):
        return one[2:] == other[2:]
    if real:  # nobody looks at the attributes
        return one._replace(attributes=0) == other._replace(attributes=0)
    unused = not (one.attributes | other.attributes) & UNUSED_SEGMENT
    return unused and one.selector == other.selector


def _text(value: int | Segment) -> str:
    if isinstance(value, Segment):
        return (
            f"{value.selector:#x} base {value.base:#x} limit {value.limit:#x} "
            f"attributes {value.attributes:#x}"
        )
    return f"{value:#x}"


def memory_difference(first: memoryview, second: memoryview) -> Difference | None:
    """The first byte that differs, of memories of one size, and what follows it."""
    start, end, size = 0, len(first), BLOCK
    while size:
        start = next(
            (
                at
                for at in range(start, end, size)
                if first[at : at + size].tobytes() != second[at : at + size].tobytes()
            ),
            end,
        )
        if start == end:
            return None
        end, size = min(start + size, end), 0 if size == 1 else max(1, size // 256)
    shown = slice(start, start + SHOWN)
    return Difference(f"memory {start:#x}", first[shown].hex(" "), second[shown].hex(" "))
