"""Flat binaries: bytes that go to one address and are entered there, as test guests and small
kernels are made."""

from __future__ import annotations

from enum import Enum
from typing import Final

from vmm_client.boot.entry import Entry, GuestMemory, ImageError
from vmm_client.boot.modes import GDT, PAGE_TABLES_END, Registers, long_mode, protected_mode
from vmm_client.boot.modes import real_mode as real_mode_registers

REAL_MODE_LIMIT: Final = 0x10_0000
SEGMENT_SIZE: Final = 0x1_0000


class Mode(Enum):
    """How the processor enters the image."""

    REAL = "real"
    PROTECTED = "protected"
    LONG = "long"


DEFAULT_GPA: Final = {Mode.REAL: 0x7C00, Mode.PROTECTED: 0x10_0000, Mode.LONG: 0x10_0000}


def load(memory: GuestMemory, image: bytes, mode: Mode, gpa: int | None = None) -> Entry:
    """Writes `image` to `gpa` and enters it at its first byte, interrupts off.

    Real mode: CS:IP is gpa/16 : gpa%16 with every segment alike, SP 0xfffe. Protected: 32-bit flat
    segments. Long: 64-bit, the first 4 GiB mapped one to one. In both the stack grows down from
    the image, and GDT and page tables lie in 0x6000 to 0xefff, which the image must leave free.

    ImageError: empty, beyond the memory or the mode's reach, over those tables.
    """
    start = DEFAULT_GPA[mode] if gpa is None else gpa
    _check(memory, image, mode, start)
    memory.write(start, image)
    return Entry(_registers(memory, mode, start))


def _registers(memory: GuestMemory, mode: Mode, start: int) -> Registers:
    if mode is Mode.REAL:
        return {**real_mode_registers(start >> 4), "rip": start & 0xF}
    enter = protected_mode if mode is Mode.PROTECTED else long_mode
    return {**enter(memory), "rip": start, "rsp": start}


def _check(memory: GuestMemory, image: bytes, mode: Mode, start: int) -> None:
    end = start + len(image)
    if not image:
        raise ImageError("flat image is empty: there is nothing to run")
    if start < 0 or end > memory.size:
        raise ImageError(
            f"flat image of {len(image)} bytes at {start:#x} ends at {end:#x}, the memory at "
            f"{memory.size:#x}: give the VM more memory or the image a lower address"
        )
    if mode is Mode.REAL:
        _check_real_mode(start, end)
    elif start < PAGE_TABLES_END and end > GDT:
        raise ImageError(
            f"flat image at {start:#x} to {end:#x} covers GDT and page tables at {GDT:#x} to "
            f"{PAGE_TABLES_END:#x}: load it at {PAGE_TABLES_END:#x} or above"
        )


def _check_real_mode(start: int, end: int) -> None:
    limit = min((start & ~0xF) + SEGMENT_SIZE, REAL_MODE_LIMIT)
    if end > limit:
        raise ImageError(
            f"flat image ends at {end:#x}, real mode reaches {limit:#x} from {start:#x}: "
            "load it lower, make it smaller, or enter it in another mode"
        )
