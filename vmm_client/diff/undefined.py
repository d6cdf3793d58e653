"""What an instruction leaves undefined: of the flags, SDM volume 2, "Flags affected" of each.

Opcodes as in SDM volume 2, appendix A. What is not named here defines or keeps every flag.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dataspace.registers import SCALARS
from vmm_client.diff.code import Instruction

CF, PF, AF, ZF, SF, OF = 0x1, 0x4, 0x10, 0x40, 0x80, 0x800
STATUS: Final = CF | PF | AF | ZF | SF | OF
PREFIXES: Final = frozenset(b"\x66\x67\xf2\xf3\xf0\x2e\x36\x3e\x26\x64\x65")
STRINGS: Final = frozenset(b"\x6c\x6d\x6e\x6f\xa4\xa5\xa6\xa7\xaa\xab\xac\xad\xae\xaf")

NONE: Final[frozenset[str]] = frozenset()
CLOCKS: Final = {0x31: frozenset({"rax", "rdx"})}  # RDTSC
SCANS: Final = (0xBC, 0xBD)  # BSF, BSR; with F3 TZCNT, LZCNT, which define CF and the result
GENERAL: Final = SCALARS[:16]  # in the order of ModRM
LOGIC: Final = frozenset({1, 4, 6})  # OR, AND, XOR in the order of the arithmetic group
DOUBLE_SHIFT: Final = frozenset({0xA4, 0xA5, 0xAC, 0xAD})
MULTIPLY: Final = SF | ZF | AF | PF
ONE_BYTE: Final = {
    **dict.fromkeys((0x84, 0x85, 0xA8, 0xA9), AF),  # TEST
    **dict.fromkeys((0x69, 0x6B), MULTIPLY),
}
TWO_BYTE: Final = {
    0xAF: MULTIPLY,  # IMUL
    **dict.fromkeys((0xA3, 0xAB, 0xB3, 0xBB, 0xBA), OF | SF | AF | PF),  # BT, BTS, BTR, BTC
}
DECIMAL: Final = {
    **dict.fromkeys((0x27, 0x2F), OF),  # DAA, DAS
    **dict.fromkeys((0x37, 0x3F), OF | SF | ZF | PF),  # AAA, AAS
    **dict.fromkeys((0xD4, 0xD5), OF | AF | CF),  # AAM, AAD
}


class Decoded(NamedTuple):
    """An instruction as far as its flags go; `rest` begins with what follows the opcode."""

    prefixes: frozenset[int]
    rex: int
    two_byte: bool
    opcode: int
    rest: bytes
    bits: int

    @property
    def wide(self) -> bool:
        """REX.W."""
        return self.rex & 8 != 0

    @property
    def extension(self) -> int:
        """The opcode's extension in ModRM, or a register there."""
        return self.rest[0] >> 3 & 7 if self.rest else 0

    @property
    def operand_size(self) -> int:
        """In bits, of an instruction that is not of the byte form."""
        if self.wide:
            return 64
        return 16 if (0x66 in self.prefixes) != (self.bits == 16) else 32


def decode(instruction: Instruction) -> Decoded:
    """Never fails: bytes that are missing are zero."""
    code, at = instruction.code + bytes(15), 0
    while at < len(instruction.code) and code[at] in PREFIXES:
        at += 1
    prefixes = frozenset(code[:at])
    rex = code[at] if instruction.bits == 64 and code[at] >> 4 == 4 else 0
    at += rex != 0
    two_byte = code[at] == 0x0F
    at += two_byte
    return Decoded(prefixes, rex, two_byte, code[at], code[at + 1 :], instruction.bits)


def repeats(instruction: Instruction) -> bool:
    """Whether it is a string instruction with a REP prefix, which engines may interrupt."""
    decoded = decode(instruction)
    repeated = not decoded.prefixes.isdisjoint({0xF2, 0xF3})
    return repeated and not decoded.two_byte and decoded.opcode in STRINGS


def undefined_registers(instruction: Instruction, rflags_after: int) -> frozenset[str]:
    """What BSF and BSR make of 0, and what is read from a clock, which no two engines tell alike."""
    decoded = decode(instruction)
    if not decoded.two_byte:
        return NONE
    if decoded.opcode in SCANS and 0xF3 not in decoded.prefixes and rflags_after & ZF:
        return frozenset({GENERAL[decoded.extension | (8 if decoded.rex & 4 else 0)]})
    return CLOCKS.get(decoded.opcode, NONE)


def undefined_flags(instruction: Instruction, rcx: int) -> int:
    """The bits of RFLAGS that say nothing after this instruction, begun with this RCX."""
    decoded = decode(instruction)
    return _two_byte(decoded, rcx) if decoded.two_byte else _one_byte(decoded, rcx)


def _one_byte(decoded: Decoded, rcx: int) -> int:
    opcode = decoded.opcode
    if opcode < 0x40 and opcode & 7 < 6:
        return AF if opcode >> 3 in LOGIC else 0
    if opcode in (0x80, 0x81, 0x82, 0x83):
        return AF if decoded.extension in LOGIC else 0
    if opcode in (0xF6, 0xF7):
        return (AF, AF, 0, 0, MULTIPLY, MULTIPLY, STATUS, STATUS)[decoded.extension]
    if opcode in (0xC0, 0xC1, 0xD0, 0xD1, 0xD2, 0xD3):
        return _shift(decoded, rcx)
    if decoded.bits != 64 and opcode in DECIMAL:
        return DECIMAL[opcode]
    return ONE_BYTE.get(opcode, 0)


def _shift(decoded: Decoded, rcx: int) -> int:
    size = decoded.operand_size if decoded.opcode & 1 else 8
    if decoded.opcode in (0xD0, 0xD1):
        count = 1
    else:
        count = decoded.rest[_modrm_length(decoded)] if decoded.opcode < 0xD0 else rcx
    count &= 63 if decoded.wide else 31
    if not count:
        return 0
    flags = OF if count != 1 else 0
    if decoded.extension >= 4:
        flags |= AF
        if decoded.extension != 7 and count >= size:
            flags |= CF
    return flags


def _two_byte(decoded: Decoded, rcx: int) -> int:
    opcode = decoded.opcode
    if opcode in TWO_BYTE:
        return TWO_BYTE[opcode]
    if opcode in SCANS:
        return OF | SF | AF | PF | (0 if 0xF3 in decoded.prefixes else CF)
    if opcode in DOUBLE_SHIFT:
        return _double_shift(decoded, rcx)
    return 0


def _double_shift(decoded: Decoded, rcx: int) -> int:
    count = rcx if decoded.opcode & 1 else decoded.rest[_modrm_length(decoded)]
    count &= 63 if decoded.wide else 31
    if not count:
        return 0
    if count > decoded.operand_size:
        return STATUS
    return AF | (OF if count != 1 else 0)


def _modrm_length(decoded: Decoded) -> int:
    """Bytes of ModRM, SIB and displacement (SDM volume 2, 2.1.5)."""
    mode, base = decoded.rest[0] >> 6, decoded.rest[0] & 7
    if mode == 3:
        return 1
    if (0x67 in decoded.prefixes) != (decoded.bits == 16) and decoded.bits != 64:
        return 1 + (2 if mode == 2 or (mode == 0 and base == 6) else mode)
    length = 1
    if base == 4:
        length, base = 2, decoded.rest[1] & 7
    return length + (4 if mode == 2 or (mode == 0 and base == 5) else mode)
