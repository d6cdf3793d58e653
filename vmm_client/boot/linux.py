"""Boots a bzImage by the 64-bit boot protocol: Documentation/arch/x86/boot.rst, "64-bit Boot
Protocol", and zero-page.rst; structures in arch/x86/include/uapi/asm/bootparam.h.

What this puts below 1 MiB, beside the tables of `modes`: the zero page and the command line. The
kernel goes where it prefers to be, the initrd as high as it may.
"""

from __future__ import annotations

import struct
from typing import Final

from vmm_client.boot import bzimage
from vmm_client.boot.bzimage import BzImage
from vmm_client.boot.entry import HIGH_RAM, LOW_RAM_END, Entry, GuestMemory, ImageError
from vmm_client.boot.modes import IDENTITY_MAPPED, long_mode

ZERO_PAGE: Final = 0x7000
COMMAND_LINE: Final = 0x10000
LOW_MEMORY_END: Final = 0x9FC00
HIGH_MEMORY: Final = 0x10_0000

PAGE: Final = 0x1000
E820_RAM: Final = 1
E820_RESERVED: Final = 2
UNREGISTERED_LOADER: Final = 0xFF
OFFSET_RSDP: Final = 0x070
OFFSET_E820_COUNT: Final = 0x1E8
OFFSET_E820: Final = 0x2D0


def load(
    memory: GuestMemory,
    kernel: bytes,
    *,
    command_line: str = "",
    initrd: bytes = b"",
    rsdp: int = 0,
) -> Entry:
    """Lays the kernel out and returns how to enter it. `rsdp` is the guest-physical address of the
    ACPI tables' root, 0 for none.

    ImageError: the kernel is refused by `bzimage.parse`; kernel, initrd or command line exceed the
    memory or what the kernel takes; the command line holds a NUL.
    """
    image = bzimage.parse(kernel)
    line = _command_line(image, command_line)
    kernel_end = _kernel_end(image, memory.size)
    initrd_gpa = _initrd_address(image, len(initrd), kernel_end, memory.size)
    registers = long_mode(memory)
    memory.write(ZERO_PAGE, _zero_page(image, memory, initrd_gpa, len(initrd), rsdp))
    memory.write(COMMAND_LINE, line)
    memory.write(image.load_address, image.payload)
    if initrd:
        memory.write(initrd_gpa, initrd)
    registers["rip"] = image.load_address + bzimage.ENTRY_64
    registers["rsi"] = ZERO_PAGE
    return Entry(registers)


def e820(memory: GuestMemory) -> list[tuple[int, int, int]]:
    """The memory map, as (base, size, type). RAM in the hole of the PC is not told."""
    end = min(memory.size, LOW_RAM_END)
    low = [
        (0, LOW_MEMORY_END, E820_RAM),
        (LOW_MEMORY_END, HIGH_MEMORY - LOW_MEMORY_END, E820_RESERVED),
        (HIGH_MEMORY, end - HIGH_MEMORY, E820_RAM),
    ]
    return [*low, (HIGH_RAM, memory.high_size, E820_RAM)] if memory.high_size else low


def _command_line(image: BzImage, command_line: str) -> bytes:
    if "\0" in command_line:
        raise ImageError(f"command line has a NUL at {command_line.index(chr(0))}: remove it")
    line = command_line.encode(errors="surrogateescape")  # as the shell gave it
    if len(line) > image.command_line_limit:
        raise ImageError(
            f"command line of {len(line)} bytes, this kernel takes {image.command_line_limit}: "
            "shorten it"
        )
    return line + b"\0"


def _kernel_end(image: BzImage, memory_size: int) -> int:
    """Where the kernel's own memory ends; it decompresses itself within `init_size` bytes."""
    end = image.load_address + max(image.init_size, len(image.payload))
    if image.load_address < HIGH_MEMORY or end > min(memory_size, LOW_RAM_END):
        raise ImageError(
            f"kernel needs {image.load_address:#x} to {end:#x}, the VM has {HIGH_MEMORY:#x} to "
            f"{memory_size:#x} free: give it at least {-(-end >> 20)} MiB"
        )
    return end


def _initrd_address(image: BzImage, size: int, kernel_end: int, memory_size: int) -> int:
    """The highest page that leaves room, and 0 without an initrd."""
    if not size:
        return 0
    limit = min(memory_size, LOW_RAM_END, IDENTITY_MAPPED, image.initrd_limit + 1)
    gpa = (limit - size) & -PAGE
    if gpa < kernel_end:
        raise ImageError(
            f"initrd of {size} bytes, there are {max(limit - kernel_end, 0)} between the kernel "
            f"({kernel_end:#x}) and {limit:#x}: give the VM more memory or it a smaller initrd"
        )
    return gpa


def _zero_page(
    image: BzImage, memory: GuestMemory, initrd_gpa: int, initrd_size: int, rsdp: int
) -> bytes:
    page = bytearray(PAGE)
    page[bzimage.HEADER : bzimage.HEADER + len(image.header)] = image.header
    page[0x210] = UNREGISTERED_LOADER
    struct.pack_into("<I", page, 0x214, image.load_address)  # code32_start
    struct.pack_into("<II", page, 0x218, initrd_gpa, initrd_size)
    struct.pack_into("<I", page, 0x228, COMMAND_LINE)
    struct.pack_into("<Q", page, OFFSET_RSDP, rsdp)
    ranges = e820(memory)
    page[OFFSET_E820_COUNT] = len(ranges)
    for index, entry in enumerate(ranges):
        struct.pack_into("<QQI", page, OFFSET_E820 + 20 * index, *entry)
    return bytes(page)
