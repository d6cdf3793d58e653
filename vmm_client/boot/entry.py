"""What every boot protocol needs and gives: guest memory, an entry state, a refusal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from dataspace.registers import Segment

# Between them a PC has its devices: from here on the interrupt controllers' addresses.
LOW_RAM_END: Final = 0xFEC0_0000
HIGH_RAM: Final = 4 << 30


class GuestMemory(Protocol):
    """RAM: `size` bytes from guest-physical address 0 on, `high_size` from HIGH_RAM on."""

    @property
    def size(self) -> int: ...
    @property
    def high_size(self) -> int: ...
    def read(self, gpa: int, size: int) -> bytes: ...
    def write(self, gpa: int, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """The registers, by their names in `dataspace.registers`, to charge at STARTUP. The others
    keep their reset values."""

    registers: dict[str, int | Segment]


class ImageError(Exception):
    """An image that cannot be booted. The message names the value, the limit and what to do."""
