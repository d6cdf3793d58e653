"""The processor modes an image may be entered in, set up as a boot loader would.

Sources: AMD64 Architecture Programmer's Manual volume 2, chapters 4 (segments), 5.3 (long-mode
paging) and 14 (processor initialisation).
"""

from __future__ import annotations

import struct
from typing import Final

from dataspace.registers import Segment
from vmm_client.boot.entry import GuestMemory

# Selectors __BOOT_CS and __BOOT_DS of the Linux boot protocol.
CODE: Final = 0x10
DATA: Final = 0x18

FLAT: Final = 0xFFFF_FFFF
CODE_64: Final = Segment(CODE, 0xA9B, FLAT, 0)
CODE_32: Final = Segment(CODE, 0xC9B, FLAT, 0)
DATA_32: Final = Segment(DATA, 0xC93, FLAT, 0)
BUSY_TSS: Final = Segment(0, 0x08B, 0xFFFF, 0)

CR0_PROTECTED: Final = 0x0000_0031  # PE, ET, NE
CR0_PAGING: Final = 0x8000_0000
CR4_PAE: Final = 0x20
EFER_LONG_MODE: Final = 0x500  # LME, LMA
RFLAGS_RESERVED: Final = 0x2

GDT: Final = 0x6000
PAGE_TABLES: Final = 0x9000
PAGE_TABLES_END: Final = PAGE_TABLES + 6 * 0x1000
IDENTITY_MAPPED: Final = 4 << 30

Registers = dict[str, int | Segment]


def real_mode(segment: int) -> Registers:
    """Real mode with every segment register at `segment` and the stack at the segment's end."""
    code = Segment(segment, 0x09B, 0xFFFF, segment << 4)
    data = Segment(segment, 0x093, 0xFFFF, segment << 4)
    return {
        **_data_segments(data),
        "cs": code,
        "cr0": 0x10,
        "rflags": RFLAGS_RESERVED,
        "rsp": 0xFFFE,
    }


def protected_mode(memory: GuestMemory) -> Registers:
    """32-bit protected mode without paging, flat segments, the GDT written to `GDT`."""
    return {
        **_data_segments(DATA_32),
        **_tables(memory, CODE_32),
        "cs": CODE_32,
        "cr0": CR0_PROTECTED,
        "rflags": RFLAGS_RESERVED,
    }


def long_mode(memory: GuestMemory) -> Registers:
    """64-bit mode, the lower `IDENTITY_MAPPED` bytes mapped one to one by 2 MiB pages in the six
    tables from `PAGE_TABLES`, the GDT written to `GDT`."""
    _write_page_tables(memory)
    return {
        **_data_segments(DATA_32),
        **_tables(memory, CODE_64),
        "cs": CODE_64,
        "cr0": CR0_PROTECTED | CR0_PAGING,
        "cr3": PAGE_TABLES,
        "cr4": CR4_PAE,
        "efer": EFER_LONG_MODE,
        "rflags": RFLAGS_RESERVED,
    }


def descriptor(segment: Segment) -> int:
    """The 8 bytes of `segment` in a GDT (APM volume 2, figure 4-14)."""
    limit = segment.limit >> 12 if segment.attributes & 0x800 else segment.limit
    return (
        limit & 0xFFFF
        | (segment.base & 0xFF_FFFF) << 16
        | (segment.attributes & 0xFF) << 40
        | (limit >> 16 & 0xF) << 48
        | (segment.attributes >> 8 & 0xF) << 52
        | (segment.base >> 24 & 0xFF) << 56
    )


def _data_segments(segment: Segment) -> Registers:
    return dict.fromkeys(("ds", "es", "fs", "gs", "ss"), segment)


def _tables(memory: GuestMemory, code: Segment) -> Registers:
    gdt = struct.pack("<4Q", 0, 0, descriptor(code), descriptor(DATA_32))
    memory.write(GDT, gdt)
    return {"gdtr": Segment(0, 0, len(gdt) - 1, GDT), "tr": BUSY_TSS}


def _write_page_tables(memory: GuestMemory) -> None:
    present_writable, large = 0x3, 0x80
    pointers, first_directory = PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000
    directories = [first_directory + 0x1000 * index for index in range(IDENTITY_MAPPED >> 30)]
    pages = range(0, IDENTITY_MAPPED, 2 << 20)
    memory.write(PAGE_TABLES, struct.pack("<Q", pointers | present_writable))
    memory.write(pointers, struct.pack("<4Q", *(gpa | present_writable for gpa in directories)))
    memory.write(
        first_directory,
        struct.pack(f"<{len(pages)}Q", *(gpa | large | present_writable for gpa in pages)),
    )
