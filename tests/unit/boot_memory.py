"""Guest memory for the tests of boot protocols."""

from __future__ import annotations

import struct


class Memory:
    """RAM that refuses what leaves it."""

    def __init__(self, size: int, high_size: int = 0) -> None:
        self.size = size
        self.high_size = high_size
        self.bytes = bytearray(size)

    def read(self, gpa: int, size: int) -> bytes:
        assert 0 <= gpa <= gpa + size <= self.size
        return bytes(self.bytes[gpa : gpa + size])

    def write(self, gpa: int, data: bytes) -> None:
        assert 0 <= gpa <= gpa + len(data) <= self.size
        self.bytes[gpa : gpa + len(data)] = data

    def u64(self, gpa: int) -> int:
        return int(struct.unpack("<Q", self.read(gpa, 8))[0])
