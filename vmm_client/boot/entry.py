"""What every boot protocol needs and gives: guest memory, an entry state, a refusal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dataspace.registers import Segment


class GuestMemory(Protocol):
    """RAM from guest-physical address 0 up to `size` bytes."""

    @property
    def size(self) -> int: ...
    def read(self, gpa: int, size: int) -> bytes: ...
    def write(self, gpa: int, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """The registers, by their names in `dataspace.registers`, to charge at STARTUP. The others
    keep their reset values."""

    registers: dict[str, int | Segment]


class ImageError(Exception):
    """An image that cannot be booted. The message names the value, the limit and what to do."""
