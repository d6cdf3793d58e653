"""Where a linear address is in memory: the walk that the processor does (SDM volume 3, chapter 4)."""

from __future__ import annotations

from typing import Final, NamedTuple

from vmm_client.boot.entry import GuestMemory
from vmm_client.errors import NotAttached

PRESENT: Final = 1
LARGE: Final = 0x80
LARGE_SHIFTS: Final = (30, 22, 21)  # of entries that may map a large page
PHYSICAL: Final = 0x000F_FFFF_FFFF_F000


class Paging(NamedTuple):
    """The control registers that say how memory is mapped."""

    cr0: int
    cr3: int
    cr4: int
    efer: int

    def physical(self, memory: GuestMemory, linear: int) -> int | None:
        """The guest-physical address, None where nothing is mapped."""
        if not self.cr0 >> 31:
            return linear
        if not self.cr4 >> 5 & 1:
            return _walk(memory, self.cr3 & 0xFFFF_F000, linear, (22, 12), 4)
        if not self.efer >> 10 & 1:
            return _walk(memory, self.cr3 & 0xFFFF_FFE0, linear, (30, 21, 12), 8)
        return _walk(memory, self.cr3 & PHYSICAL, linear, (39, 30, 21, 12), 8)


def _walk(
    memory: GuestMemory, table: int, linear: int, shifts: tuple[int, ...], size: int
) -> int | None:
    """Through tables of one page with entries of `size` bytes."""
    mask = 4096 // size - 1
    for shift in shifts:
        try:
            at = table + (linear >> shift & mask) * size
            entry = int.from_bytes(memory.read(at, size), "little")
        except NotAttached:
            return None
        if not entry & PRESENT:
            return None
        table = entry & PHYSICAL
        if entry & LARGE and shift in LARGE_SHIFTS:
            break
    offset = (1 << shift) - 1
    return table & ~offset | linear & offset
