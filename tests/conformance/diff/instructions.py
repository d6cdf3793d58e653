"""Streams of instructions from a seed: valid code whose every result is visible to a comparison.

A stream begins with values in all registers, works on its own 512 bytes of data at [rbx], and ends
with HLT. What divides may fault, and end it earlier. Left out is what differs by design: clocks,
CPUID, RDRAND, the approximations of RCPPS and RSQRTPS, the x87's transcendental functions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from tests.conformance.diff.vector_instructions import DOUBLES, SINGLES, Vectors

T = TypeVar("T")

DATA_SIZE: Final = 512

CONDITIONS: Final = (
    "o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g",
)  # fmt: skip
VALUES: Final = (
    *(0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF),
    *(1 << 63, (1 << 63) - 1, (1 << 64) - 1),
)
LEGACY: Final = ("ax", "cx", "dx", "si", "di", "bp")
EXTENDED: Final = tuple(f"r{number}" for number in range(8, 16))
SUFFIX: Final = {8: "b", 16: "w", 32: "d", 64: ""}
POINTER: Final = {8: "byte", 16: "word", 32: "dword", 64: "qword"}
ARITHMETIC: Final = ("add", "or", "adc", "sbb", "and", "sub", "xor", "cmp", "test")
SHIFTS: Final = ("rol", "ror", "rcl", "rcr", "shl", "shr", "sar")
BIT_TESTS: Final = ("bt", "bts", "btr", "btc")
REPEATED: Final = (
    "rep movs",
    "rep stos",
    "rep lods",
    "repe cmps",
    "repne cmps",
    "repe scas",
    "repne scas",
)


class Stream:
    """Draws instructions for one mode: `bits` 16, 32 or 64; `vectors`: SSE and x87 as well."""

    def __init__(self, bits: int, data_at: int, seed: int, *, vectors: bool = False) -> None:
        """`data_at` is the offset at which the guest will have its data."""
        self._bits = bits
        self._data_at = data_at
        self._random = random.Random(f"{bits}/{seed}")
        self._labels = 0
        self._base = {16: "bx", 32: "ebx", 64: "rbx"}[bits]
        self._sizes = (8, 16, 32, 64) if bits == 64 else (8, 16, 32)
        self._groups: list[Callable[[], Sequence[str]]] = [
            *[self._arithmetic] * 4,
            *[self._unary, self._shift, self._move, self._bit, self._string, self._stack] * 2,
            *[self._multiply, self._divide, self._double_shift, self._flags, self._jump],
            *[self._exchange, self._convert, self._condition, self._call],
        ]
        if bits != 64:
            self._groups.append(self._decimal)
        self._vectors = Vectors(self._random, self._base) if vectors else None
        if self._vectors:
            self._groups += [self._vectors.draw] * len(self._groups)

    def draw(self, count: int) -> list[str]:
        """`count` groups of one or a few instructions, between what begins and ends a stream."""
        lines = list(self._begin())
        if self._vectors:
            lines += self._vectors.begin()
        for _ in range(count):
            lines += self._one(self._groups)()
        return [*lines, "hlt"]

    def data(self) -> bytes:
        """What lies at [rbx]: random bytes, and floating-point numbers at the edges."""
        numbers = (
            self._one(
                (
                    self._one(SINGLES) << 32 | self._one(SINGLES),
                    self._one(DOUBLES),
                    self._random.getrandbits(64),
                )
            )
            for _ in range(DATA_SIZE // 8)
        )
        return b"".join(number.to_bytes(8, "little") for number in numbers)

    # Operands.

    def _one(self, choices: Sequence[T]) -> T:
        return self._random.choice(choices)

    def _register(self, size: int) -> str:
        if self._bits == 64 and self._random.random() < 0.5:
            return self._one(EXTENDED) + SUFFIX[size]
        if size == 8:
            return self._one(("al", "cl", "dl"))
        name = self._one(LEGACY)
        return name if size == 16 else ("e" if size == 32 else "r") + name

    def _memory(self, size: int) -> str:
        at = self._random.randrange(DATA_SIZE - 8)
        return f"{POINTER[size]} ptr [{self._base}+{at}]"

    def _place(self, size: int) -> str:
        return self._memory(size) if self._random.random() < 0.3 else self._register(size)

    def _immediate(self, size: int) -> int:
        """Of an instruction: sign-extended from 32 bits where the operand has 64."""
        value = self._one((self._one(VALUES), self._random.getrandbits(64)))
        value &= (1 << min(size, 32)) - 1
        return value - (value >> 31 << 32) if size == 64 else value

    def _label(self) -> str:
        self._labels += 1
        return f"{self._labels}"

    # Groups.

    def _begin(self) -> Iterator[str]:
        yield "cld"
        yield f"mov {self._base}, {self._data_at}"
        wide = self._sizes[-1]
        for name in LEGACY:
            value = self._one((self._one(VALUES), self._random.getrandbits(64)))
            yield f"mov {'r' if wide == 64 else 'e'}{name}, {value & (1 << wide) - 1}"
        if wide == 64:
            for name in EXTENDED:
                yield f"mov {name}, {self._random.getrandbits(64)}"

    def _arithmetic(self) -> list[str]:
        size, name = self._one(self._sizes), self._one(ARITHMETIC)
        left, right = self._place(size), self._register(size)
        form = self._random.randrange(4)
        if form == 0:
            return [f"{name} {left}, {self._immediate(size)}"]
        if form == 1 and name != "test":
            return [f"{name} {right}, {left}"]
        if form == 2 and size == 8:
            return [f"{name} ah, {self._one(('al', 'ch', 'dl', 'dh'))}"]
        return [f"{name} {left}, {right}"]

    def _unary(self) -> list[str]:
        size = self._one(self._sizes)
        return [f"{self._one(('inc', 'dec', 'neg', 'not'))} {self._place(size)}"]

    def _shift(self) -> list[str]:
        size, name = self._one(self._sizes), self._one(SHIFTS)
        count = self._one(("cl", "1", str(self._random.randrange(size + 2))))
        return [f"{name} {self._place(size)}, {count}"]

    def _double_shift(self) -> list[str]:
        """Of 16 bits only by less than that: the result of more is undefined."""
        size = self._one(self._sizes[1:])
        count = self._one(("cl", str(self._random.randrange(32))))
        if size == 16:
            count = str(self._random.randrange(16))
        name = self._one(("shld", "shrd"))
        return [f"{name} {self._place(size)}, {self._register(size)}, {count}"]

    def _move(self) -> list[str]:
        size, source = self._one(self._sizes[1:]), self._one((8, 16))
        if source >= size:
            source = 8
        return [
            self._one(
                (
                    f"mov {self._register(size)}, {self._memory(size)}",
                    f"mov {self._memory(size)}, {self._register(size)}",
                    f"mov {self._register(size)}, {self._immediate(size)}",
                    f"movzx {self._register(size)}, {self._place(source)}",
                    f"movsx {self._register(size)}, {self._place(source)}",
                    f"lea {self._register(size)}, [{self._base}+{self._random.randrange(99)}]",
                )
            )
        ]

    def _bit(self) -> list[str]:
        size = self._one(self._sizes[1:])
        if self._random.random() < 0.3:
            return [f"{self._one(('bsf', 'bsr'))} {self._register(size)}, {self._place(size)}"]
        name = self._one(BIT_TESTS)
        if self._random.random() < 0.5:
            return [f"{name} {self._place(size)}, {self._random.randrange(size)}"]
        return [f"{name} {self._register(size)}, {self._register(size)}"]

    def _multiply(self) -> list[str]:
        size, wide = self._one(self._sizes), self._one(self._sizes[1:])
        return [
            self._one(
                (
                    f"mul {self._place(size)}",
                    f"imul {self._place(size)}",
                    f"imul {self._register(wide)}, {self._place(wide)}",
                    f"imul {self._register(wide)}, {self._place(wide)}, {self._immediate(wide)}",
                )
            )
        ]

    def _divide(self) -> list[str]:
        """Mostly of what fits; the rest faults now and then."""
        size = self._one(self._sizes)
        name, half = self._one(("div", "idiv")), {8: "ah", 16: "dx", 32: "edx", 64: "rdx"}[size]
        divisor = {8: "cl", 16: "cx", 32: "ecx", 64: "rcx"}[size]
        if self._random.random() < 0.15:
            return [f"{name} {self._place(size)}"]
        return [f"and {half}, 0", f"or {divisor}, 3", f"{name} {divisor}"]

    def _string(self) -> list[str]:
        size = self._one(self._sizes)
        letter = {8: "b", 16: "w", 32: "d", 64: "q"}[size]
        first, second, counter = (
            {16: name, 32: f"e{name}", 64: f"r{name}"}[self._bits] for name in ("si", "di", "cx")
        )
        backwards = self._random.random() < 0.2
        middle = DATA_SIZE // 2 + 64 * backwards
        lines = [
            f"lea {first}, [{self._base}+{middle - self._random.randrange(64)}]",
            f"lea {second}, [{self._base}+{middle + self._random.randrange(64)}]",
            f"mov {counter}, {self._random.randrange(8)}",
            f"{self._one(REPEATED)}{letter}",
        ]
        return ["std", *lines, "cld"] if backwards else lines

    def _stack(self) -> list[str]:
        size = self._one((16, self._bits))
        return [
            f"push {self._register(size)}",
            self._one((f"pop {self._place(size)}", f"pop {self._register(size)}")),
        ]

    def _call(self) -> list[str]:
        over, body = self._label(), self._label()
        return [f"call {body}f", f"jmp {over}f", f"{body}:", *self._unary(), "ret", f"{over}:"]

    def _flags(self) -> list[str]:
        return self._one(
            (
                ["clc"],
                ["stc"],
                ["cmc"],
                ["lahf"],
                ["sahf"],
                ["pushf", f"pop {self._register(self._bits)}"],
            )
        )

    def _jump(self) -> list[str]:
        label = self._label()
        counter = {16: "cx", 32: "ecx", 64: "rcx"}[self._bits]
        if self._random.random() < 0.3:
            return [
                f"mov {counter}, {self._random.randrange(1, 4)}",
                f"{label}:",
                *self._arithmetic_but_counter(),
                f"loop {label}b",
            ]
        return [f"j{self._one(CONDITIONS)} {label}f", *self._arithmetic(), f"{label}:"]

    def _arithmetic_but_counter(self) -> list[str]:
        return [
            f"{self._one(ARITHMETIC)} {self._one(('eax', 'edx', 'esi'))}, {self._immediate(32)}"
        ]

    def _exchange(self) -> list[str]:
        size, wide = self._one(self._sizes), self._one(self._sizes[2:])
        lock = self._one(("", "lock "))
        return [
            self._one(
                (
                    f"xchg {self._register(size)}, {self._place(size)}",
                    f"{lock}xadd {self._memory(size)}, {self._register(size)}",
                    f"{lock}cmpxchg {self._memory(size)}, {self._register(size)}",
                    f"{lock}cmpxchg8b {self._memory(64)}",
                    f"{lock}sub {self._memory(size)}, {self._register(size)}",
                    f"bswap {self._register(wide)}",
                    "xlatb" if self._bits != 16 else "nop",
                )
            )
        ]

    def _convert(self) -> list[str]:
        names = ["cbw", "cwde", "cwd", "cdq"] + ["cdqe", "cqo"] * (self._bits == 64)
        return [self._one(names)]

    def _condition(self) -> list[str]:
        size, condition = self._one(self._sizes[1:]), self._one(CONDITIONS)
        return [
            self._one(
                (
                    f"set{condition} {self._place(8)}",
                    f"cmov{condition} {self._register(size)}, {self._place(size)}",
                )
            )
        ]

    @staticmethod
    def _decimal() -> list[str]:
        return ["das"]
