"""The instruction at which a guest stands."""

from __future__ import annotations

from contextlib import suppress
from typing import Final, NamedTuple

from dataspace.registers import Segment
from vmm_client.diff.paging import Paging
from vmm_client.diff.stop import Registers
from vmm_client.errors import NotAttached
from vmm_client.memory import GuestMemory

LONGEST: Final = 15
PAGE: Final = 4096
LONG_SEGMENT: Final = 0x200  # L of a code segment's attributes
BIG_SEGMENT: Final = 0x400  # D
LONG_ACTIVE: Final = 0x400  # EFER.LMA


class Instruction(NamedTuple):
    """`code` is what stands there, at most 15 bytes: the instruction may be shorter. `bits`: 16,
    32 or 64. `gpa` is None where nothing is mapped."""

    rip: int
    gpa: int | None
    code: bytes
    bits: int


def instruction_at(memory: GuestMemory, registers: Registers) -> Instruction:
    """The next instruction of a guest with these registers."""
    rip = number(registers, "rip")
    tables, at = paging(registers), linear(registers, "cs", rip)
    code = _code_at(memory, tables, at)
    return Instruction(rip, tables.physical(memory, at), code, code_bits(registers))


def linear(registers: Registers, name: str, offset: int) -> int:
    """The linear address of an offset in CS or SS."""
    if code_bits(registers) == 64:
        return offset
    segment = registers[name]
    assert isinstance(segment, Segment)
    return segment.base + offset & 0xFFFF_FFFF


def paging(registers: Registers) -> Paging:
    """How memory is mapped with these registers."""
    return Paging(*(number(registers, name) for name in ("cr0", "cr3", "cr4", "efer")))


def _code_at(memory: GuestMemory, tables: Paging, at: int) -> bytes:
    """As far as something is mapped."""
    code = b""
    with suppress(NotAttached):
        while len(code) < LONGEST:
            gpa = tables.physical(memory, at + len(code))
            if gpa is None:
                break
            code += memory.read(gpa, min(LONGEST - len(code), PAGE - gpa % PAGE))
    return code


def number(registers: Registers, name: str) -> int:
    """A register that is a number; 0 where the engine has none, as an engine without EFER."""
    value = registers.get(name, 0)
    assert isinstance(value, int)
    return value


def code_bits(registers: Registers) -> int:
    """16, 32 or 64."""
    cs = registers["cs"]
    assert isinstance(cs, Segment)
    if number(registers, "efer") & LONG_ACTIVE and cs.attributes & LONG_SEGMENT:
        return 64
    return 32 if cs.attributes & BIG_SEGMENT else 16
