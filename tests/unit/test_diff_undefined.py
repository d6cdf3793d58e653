"""What is undefined after an instruction: SDM volume 2 at each."""

from __future__ import annotations

import pytest

from vmm_client.diff.code import Instruction
from vmm_client.diff.undefined import repeats, undefined_flags, undefined_registers

CF, PF, AF, ZF, SF, OF = 0x1, 0x4, 0x10, 0x40, 0x80, 0x800
ALL = CF | PF | AF | ZF | SF | OF
PRODUCT = PF | AF | ZF | SF


def instruction(code: str, bits: int = 64) -> Instruction:
    return Instruction(0, 0, bytes.fromhex(code), bits)


@pytest.mark.parametrize(
    ("code", "rcx", "flags"),
    [
        ("01 c8", 0, 0),  # add eax, ecx
        ("48 31 c8", 0, AF),  # xor rax, rcx
        ("66 25 01 00", 0, AF),  # and ax, 1
        ("83 e0 01", 0, AF),  # and eax, 1
        ("83 c0 01", 0, 0),  # add eax, 1
        ("a8 01", 0, AF),  # test al, 1
        ("f7 c0 01 00 00 00", 0, AF),  # test eax, 1
        ("f7 d8", 0, 0),  # neg eax
        ("f7 e1", 0, PRODUCT),  # mul ecx
        ("6b c0 05", 0, PRODUCT),  # imul eax, eax, 5
        ("0f af c1", 0, PRODUCT),  # imul eax, ecx
        ("f6 f1", 0, ALL),  # div cl
        ("d1 e0", 0, AF),  # shl eax, 1
        ("d3 e0", 0x20, 0),  # shl eax, cl: by 0
        ("48 d3 e0", 0x20, OF | AF),  # shl rax, cl: by 32
        ("d3 c0", 2, OF),  # rol eax, cl
        ("d1 d8", 0, 0),  # rcr eax, 1
        ("c0 e0 08", 0, OF | AF | CF),  # shl al, 8
        ("c0 e0 07", 0, OF | AF),  # shl al, 7
        ("66 c1 e8 10", 0, OF | AF | CF),  # shr ax, 16
        ("c0 f8 09", 0, OF | AF),  # sar al, 9
        ("c1 64 8d 40 03", 0, OF | AF),  # shl dword ptr [rbp+rcx*4+0x40], 3
        ("c1 25 00 01 00 00 01", 0, AF),  # shl dword ptr [rip+0x100], 1
        ("0f a4 c8 01", 0, AF),  # shld eax, ecx, 1
        ("0f ad c8", 7, OF | AF),  # shrd eax, ecx, cl
        ("66 0f a5 c8", 17, ALL),  # shld ax, cx, cl
        ("0f ba e0 03", 0, OF | SF | AF | PF),  # bt eax, 3
        ("0f bc c1", 0, ALL & ~ZF),  # bsf eax, ecx
        ("f3 0f bc c1", 0, OF | SF | AF | PF),  # tzcnt eax, ecx
        ("0f a2", 0, 0),  # cpuid
    ],
)
def test_flags_in_64_bits(code: str, rcx: int, flags: int) -> None:
    assert undefined_flags(instruction(code), rcx) == flags


@pytest.mark.parametrize(
    ("code", "bits", "flags"),
    [
        ("c1 a7 34 12 10", 16, OF | AF | CF),  # shl word ptr [bx+0x1234], 16
        ("66 c1 a7 34 12 10", 16, OF | AF),  # shl dword ptr [bx+0x1234], 16
        ("c1 26 34 12 10", 16, OF | AF | CF),  # shl word ptr [0x1234], 16
        ("67 c1 a7 34 12 01", 32, AF),  # shl dword ptr [bx+0x1234], 1
        ("2f", 32, OF),  # das
        ("37", 16, OF | SF | ZF | PF),  # aaa
        ("d4 0a", 32, OF | AF | CF),  # aam
    ],
)
def test_flags_elsewhere(code: str, bits: int, flags: int) -> None:
    assert undefined_flags(instruction(code, bits), 0) == flags


@pytest.mark.parametrize(
    ("code", "rflags", "registers"),
    [
        ("0f 31", 0, {"rax", "rdx"}),
        ("0f bc c1", ZF, {"rax"}),
        ("0f bc c1", 0, set()),
        ("44 0f bd ab 64 01 00 00", ZF, {"r13"}),
        ("f3 0f bc c1", ZF, set()),
        ("bc 00 00 00 00", ZF, set()),
    ],
)
def test_registers(code: str, rflags: int, registers: set[str]) -> None:
    assert undefined_registers(instruction(code), rflags) == registers


@pytest.mark.parametrize(
    ("code", "answer"),
    [("f3 a4", True), ("66 f2 af", True), ("f3 48 ab", True), ("a4", False), ("f3 90", False)],
)
def test_repeated_strings(code: str, answer: bool) -> None:
    assert repeats(instruction(code)) is answer


def test_bytes_that_are_missing_do_no_harm() -> None:
    for code in ("", "66", "0f", "c1", "f3"):
        assert undefined_flags(instruction(code), 0) in (0, AF)
        assert repeats(instruction(code)) is False
