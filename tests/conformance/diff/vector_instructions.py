"""SSE to SSE4.2, POPCNT and x87 for `instructions.Stream`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

DATA_SIZE: Final = 512

# Zeros, denormals, infinities, NaNs, the largest, what does not fit an integer.
SINGLES: Final = (
    *(0x00000000, 0x80000000, 0x00000001, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7FA00000),
    *(0x7F7FFFFF, 0x3F800000, 0xC0490FDB, 0x4F000000, 0x00800000, 0x3FC00000),
)
DOUBLES: Final = (
    *(0, 1 << 63, 1, 0x7FF0 << 48, 0xFFF0 << 48, 0x7FF8 << 48, 0x7FF4 << 48, 0x7FEFFFFFFFFFFFFF),
    *(0x3FF0 << 48, 0xC00921FB54442D18, 0x41E0 << 48, 0x43E0 << 48, 0x3FF8 << 48),
)

SCALAR: Final = {"ps": "", "pd": "", "ss": "dword", "sd": "qword"}  # what they read from memory
ARITHMETIC: Final = tuple(
    (name + kind, pointer)
    for name in ("add", "sub", "mul", "div", "sqrt", "min", "max", "ucomi", "comi")
    for kind, pointer in SCALAR.items()
    if pointer or "comi" not in name
)
LOGIC: Final = tuple(name + kind for name in ("and", "andn", "or", "xor") for kind in ("ps", "pd"))
INTEGERS: Final = (
    "paddb", "paddw", "paddd", "paddq", "paddsb", "paddsw", "paddusb", "paddusw", "psubb",
    "psubw", "psubd", "psubq", "psubsb", "psubsw", "psubusb", "psubusw", "pmullw", "pmulhw",
    "pmulhuw", "pmuludq", "pmaddwd", "psadbw", "pavgb", "pavgw", "pminub", "pmaxub", "pminsw",
    "pmaxsw", "pcmpeqb", "pcmpeqw", "pcmpeqd", "pcmpgtb", "pcmpgtw", "pcmpgtd", "pand", "pandn",
    "por", "pxor", "packsswb", "packssdw", "packuswb", "punpcklbw", "punpckhbw", "punpcklwd",
    "punpckhwd", "punpckldq", "punpckhdq", "punpcklqdq", "punpckhqdq", "unpcklps", "unpckhps",
    "unpcklpd", "unpckhpd", "movaps", "movdqu", "psllw", "pslld", "psllq", "psrlw", "psrld",
    "psrlq", "psraw", "psrad",
)  # fmt: skip
CONVERSIONS: Final = {
    **dict.fromkeys(
        ["cvtdq2ps", "cvtps2dq", "cvttps2dq", "cvtpd2dq", "cvttpd2dq", "cvtpd2ps"], "xmmword"
    ),
    **dict.fromkeys(("cvtdq2pd", "cvtps2pd", "cvtsd2ss"), "qword"),
    "cvtss2sd": "dword",
}
TO_INTEGER: Final = {
    "cvtss2si": "dword",
    "cvttss2si": "dword",
    "cvtsd2si": "qword",
    "cvttsd2si": "qword",
}
WITH_BYTE: Final = ("cmpps", "cmppd", "pshufd", "pshuflw", "pshufhw", "shufps", "shufpd")
SHIFTS: Final = (
    "psllw", "pslld", "psllq", "psrlw", "psrld", "psrlq", "psraw", "psrad", "pslldq", "psrldq",
)  # fmt: skip
LATER: Final = (
    "haddps", "haddpd", "hsubps", "hsubpd", "addsubps", "addsubpd", "movsldup", "movshdup", "pshufb",
    "phaddw", "phaddd", "phaddsw", "phsubw", "phsubd", "phsubsw", "pmaddubsw", "pmulhrsw", "psignb",
    "psignw", "psignd", "pabsb", "pabsw", "pabsd", "pmulld", "pmuldq", "pminsb", "pmaxsb", "pminuw",
    "pmaxuw", "pminsd", "pmaxsd", "pminud", "pmaxud", "pcmpeqq", "pcmpgtq", "packusdw", "phminposuw",
    "pmovsxbw", "pmovzxwd", "ptest",
)  # fmt: skip
LATER_WITH_BYTE: Final = (
    "palignr", "roundps", "roundpd", "blendps", "blendpd", "pblendw", "dpps", "dppd", "mpsadbw",
    "pcmpistri", "pcmpistrm", "pcmpestri", "pcmpestrm", "insertps",
)  # fmt: skip
X87_UNARY: Final = ("fabs", "fchs", "fsqrt", "frndint")
X87_MEMORY: Final = ("fadd", "fsub", "fsubr", "fmul", "fdiv", "fdivr")
X87_STORE: Final = (
    ("fstp", "dword"), ("fstp", "qword"), ("fstp", "tbyte"), ("fistp", "word"), ("fistp", "dword"),
    ("fistp", "qword"), ("fbstp", "tbyte"),
)  # fmt: skip
X87_LOAD: Final = (("fld", "dword"), ("fld", "qword"), ("fild", "dword"), ("fild", "qword"))


class Vectors:
    """Draws from a `Random` that others use too; `base` is the register that points to the data."""

    def __init__(self, source: random.Random, base: str) -> None:
        self._random = source
        self._base = base

    def begin(self) -> list[str]:
        """Values in all registers."""
        return [f"movdqu xmm{number}, {self._memory('xmmword')}" for number in range(16)]

    def draw(self) -> Sequence[str]:
        """One instruction, or of the x87 what leaves its stack empty."""
        kinds = (
            *(self._floating, self._integers, self._later),
            *(self._converted, self._with_byte, self._x87),
        )
        if self._random.random() < 0.1:
            return self._control()
        return self._random.choice(kinds)()

    def _control(self) -> list[str]:
        """Rounding, denormals as zeros, precision of the x87; all exceptions stay masked."""
        rounding = self._random.randrange(4)
        small = self._random.choice((0, 0x40, 0x8000, 0x8040))  # DAZ, FTZ
        mxcsr = 0x1F80 | rounding << 13 | small
        precision = self._random.choice((0, 2, 3))
        fcw = 0x7F | rounding << 10 | precision << 8
        name, value, pointer = self._random.choice(
            (("ldmxcsr", mxcsr, "dword"), ("fldcw", fcw, "word"))
        )
        at = self._memory(pointer)
        return [f"mov {at}, {value}", f"{name} {at}"]

    def _floating(self) -> list[str]:
        name, pointer = self._random.choice(ARITHMETIC)
        return [f"{name} {self._xmm()}, {self._source(pointer or 'xmmword')}"]

    def _later(self) -> list[str]:
        """SSE3 to SSE4.2, and POPCNT: x86-64-v2. KVM may hide what the processor does all the same."""
        choose = self._random.choice
        if self._random.random() < 0.2:
            destination, source = choose((("eax", "edx"), ("rdx", "r9"), ("si", "ax")))
            return [f"popcnt {destination}, {source}"]
        if self._random.random() < 0.3:
            name, byte = choose(LATER_WITH_BYTE), self._random.randrange(128)
            source = self._xmm() if name == "insertps" else self._source("xmmword")
            return [f"{name} {self._xmm()}, {source}, {byte}"]
        name = choose(LATER)
        source = self._xmm() if name.startswith("pmov") else self._source("xmmword")
        return [f"{name} {self._xmm()}, {source}"]

    def _integers(self) -> list[str]:
        name = self._random.choice((*INTEGERS, *LOGIC))
        return [f"{name} {self._xmm()}, {self._source('xmmword')}"]

    def _converted(self) -> list[str]:
        choose = self._random.choice
        if self._random.random() < 0.5:
            name, pointer = choose(tuple(CONVERSIONS.items()))
            return [f"{name} {self._xmm()}, {self._source(pointer)}"]
        register = choose(("eax", "rdx", "esi", "r9", "r10d"))
        name, pointer = choose(tuple(TO_INTEGER.items()))
        return [
            choose(
                (
                    f"{name} {register}, {self._source(pointer)}",
                    f"{choose(('cvtsi2ss', 'cvtsi2sd'))} {self._xmm()}, {register}",
                    f"{choose(('movmskps', 'movmskpd', 'pmovmskb'))} eax, {self._xmm()}",
                    f"movq rdx, {self._xmm()}",
                    f"movq {self._xmm()}, rsi",
                    f"movd {self._xmm()}, ecx",
                )
            )
        ]

    def _with_byte(self) -> list[str]:
        byte = self._random.randrange(256)
        if self._random.random() < 0.3:
            return [f"{self._random.choice(SHIFTS)} {self._xmm()}, {byte}"]
        name = self._random.choice(WITH_BYTE)
        predicate = byte % 8 if name.startswith("cmp") else byte
        return [f"{name} {self._xmm()}, {self._source('xmmword')}, {predicate}"]

    def _x87(self) -> list[str]:
        choose = self._random.choice
        lines = [self._x87_at(*choose(X87_LOAD)), self._x87_at(*choose(X87_LOAD))]
        lines.append(
            choose(
                (
                    choose(X87_UNARY),
                    self._x87_at(choose(X87_MEMORY), choose(("dword", "qword"))),
                    f"{choose(X87_MEMORY)} st, st(1)",
                    choose(("fxch", "fcomi st, st(1)", "fucomi st, st(1)")),
                )
            )
        )
        return [*lines, self._x87_at(*choose(X87_STORE)), self._x87_at(*choose(X87_STORE))]

    def _x87_at(self, name: str, pointer: str) -> str:
        return f"{name} {self._memory(pointer)}"

    def _xmm(self) -> str:
        return f"xmm{self._random.randrange(16)}"

    def _source(self, pointer: str) -> str:
        return self._memory(pointer) if self._random.random() < 0.3 else self._xmm()

    def _memory(self, pointer: str) -> str:
        return f"{pointer} ptr [{self._base}+{16 * self._random.randrange(DATA_SIZE // 16)}]"
