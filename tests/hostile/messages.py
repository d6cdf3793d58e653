"""Requests that nobody would send: of random fields, at the edges of numbers, with names of anybody, and
bytes that are no message at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

DEPTH: Final = 4
LARGE: Final = 4 << 20  # gRPC's own limit of a message: with its frame, just beyond
LIKELY: Final = 0.7  # that a field is there
EDGES: Final = (
    *(0, 1, 2, 3, 7, 63, 64, 65, 255, 4095, 4096, 4097, 8192, 1 << 20, (1 << 20) + 1),
    *((1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 32) - 4096, 1 << 32, 1 << 40, 1 << 52),
    *((1 << 63) - 4096, (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1),
)
FRACTIONS: Final = (0.0, -0.0, 1.0, -1.0, 1e-300, 1e300, math.inf, -math.inf, math.nan, 86400.0)
WORDS: Final = (
    *("", "soft", "kvm", "x86emu", "SOFT", "\0", "sessions/", "dataspaces/", "sessions/../core"),
    *("dataspaces/0", "sessions/-", "-", "*", "%s%n", "../../etc/passwd", "/dev/zero", "created"),
    *("ünïcödé", "\U0001f4a5", "a" * 81, "a/" * 2048, "9" * 400, "\r\n\r\n", "\x1b[2J"),
)
RANGES: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
NAMES_KEPT: Final = 200


class Forge:
    """Makes messages by their descriptors. `names` are of whatever objects it heard, alive or not."""

    def __init__(self, chance: Random, names: list[str]) -> None:
        self._chance = chance
        self.names = names

    def learn(self, message: Message) -> None:
        """Remember the names in an answer."""
        for field, value in message.ListFields():
            several = field.is_repeated
            for each in list(value) if several else [value]:
                if isinstance(each, Message):
                    self.learn(each)
                elif isinstance(each, str) and "/" in each and len(each) < 200:
                    self._remember(each)

    def _remember(self, name: str) -> None:
        if len(self.names) < NAMES_KEPT:
            self.names.append(name)
        else:
            self.names[self._chance.randrange(NAMES_KEPT)] = name

    def message(self, kind: Descriptor, depth: int = 0) -> Message:
        """Of this kind."""
        made = GetMessageClass(kind)()
        for field in kind.fields:
            if self._chance.random() < LIKELY:
                self._fill(made, field, depth)
        return made

    def _fill(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        if field.is_repeated:
            count = self._chance.choice((0, 1, 1, 2, 3, 3, 161 if depth < 2 else 1))
            make = self._submessage if field.message_type else self._value
            getattr(message, field.name).extend([make(field, depth) for _ in range(count)])
        elif field.message_type:
            if depth < DEPTH:
                getattr(message, field.name).CopyFrom(self._submessage(field, depth))
        else:
            setattr(message, field.name, self._value(field, depth))

    def _submessage(self, field: FieldDescriptor, depth: int) -> Message:
        assert field.message_type
        return self.message(field.message_type, depth + 1)

    def _value(self, field: FieldDescriptor, _: int) -> Any:
        chance, kind = self._chance, field.cpp_type
        if field.type == FieldDescriptor.TYPE_BYTES:
            return chance.randbytes(chance.choice((0, 1, 8, 512, 513, 4096)))
        if kind == FieldDescriptor.CPPTYPE_STRING:
            return self._string(field.name)
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return chance.random() < 0.5
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            return chance.choice((0, 1, 2, 3, 99, -1, (1 << 31) - 1))
        if kind in RANGES:
            low, high = RANGES[kind]
            number = chance.choice((*EDGES, -1, -(1 << 31), chance.getrandbits(64)))
            return min(max(number, low), high)
        return chance.choice(FRACTIONS)

    def _string(self, field: str) -> str:
        if field == "request_id" and self._chance.random() < 0.8:
            return str(self._chance.randrange(1 << 20)) if self._chance.random() < 0.5 else ""
        if field == "engine" and self._chance.random() < 0.6:
            return "soft"
        pick = self._chance.random()
        if pick < 0.75 and self.names:
            return self._chance.choice(self.names)
        if pick < 0.85 and self.names:
            name = self._chance.choice(self.names)
            return name[: self._chance.randrange(len(name))] + self._chance.choice(WORDS)
        return self._chance.choice(WORDS)

    def wire(self, kind: Descriptor) -> bytes:
        """What goes over the wire in the place of such a message; one in two is one."""
        message = self.message(kind).SerializeToString()
        if self._chance.random() < 0.5:
            return message
        spoil = self._chance.choice((self._cut, self._flip, self._strange, self._garbage))
        return spoil(message)

    def _cut(self, message: bytes) -> bytes:
        return message[: self._chance.randrange(len(message) + 1)]

    def _flip(self, message: bytes) -> bytes:
        spoiled = bytearray(message or b"\0")
        for _ in range(self._chance.randint(1, 8)):
            spoiled[self._chance.randrange(len(spoiled))] = self._chance.getrandbits(8)
        return bytes(spoiled)

    def _strange(self, message: bytes) -> bytes:
        """Fields that nobody knows, or of another wire type; the last may lie about its length."""
        strange: list[Callable[[], bytes]] = [
            lambda: bytes([self._chance.getrandbits(8)]),
            lambda: b"\xff" * self._chance.randint(1, 12),
            lambda: b"\x0a" + b"\xff\xff\xff\xff\x0f" + message,
            lambda: b"\x0b" * self._chance.randint(1, 2000),
            lambda: b"\x0a\x02\xc3\x28",  # a string that is no UTF-8
            lambda: (
                bytes([self._chance.randrange(1, 16) << 3 | self._chance.randrange(8)]) + message
            ),
        ]
        return message + self._chance.choice(strange)()

    def _garbage(self, _: bytes) -> bytes:
        if self._chance.random() < 0.05:
            return bytes(LARGE - self._chance.randrange(64))
        return self._chance.randbytes(self._chance.choice((1, 17, 300, 5000)))
