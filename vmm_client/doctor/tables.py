"""Descriptor tables and page tables for the micro-guests, and the registers that enter them.

Sources: AMD64 Architecture Programmer's Manual volume 2, 4.8 (descriptors), 8.2 (vectors), 12.2.5
(TSS in long mode) and 5.3 (page tables).
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import Final

from dataspace.registers import Segment
from vmm_client.boot.entry import GuestMemory
from vmm_client.boot.modes import (
    BUSY_TSS,
    CODE_64,
    DATA_32,
    Registers,
    descriptor,
    protected_mode,
    real_mode,
)

GDT: Final = 0x1000
IDT: Final = 0x2000
TSS: Final = 0x3000
STUBS: Final = 0x3800
PAGE_DIRECTORY_32: Final = 0x5000
PAGE_TABLES: Final = 0x7000
CODE: Final = 0x10000
USER_CODE: Final = 0x11000
HANDLER: Final = 0x12000
STACK: Final = 0x28000
RAM_SIZE: Final = 0x40000

FAULT_PORT: Final = 0x82

KERNEL_CS: Final = 0x10
TSS_SELECTOR: Final = 0x30
USER_DATA: Final = Segment(0x23, 0xCF3, 0xFFFFFFFF, 0)
USER_CODE_64: Final = Segment(0x2B, 0xAFB, 0xFFFFFFFF, 0)
TASK: Final = Segment(TSS_SELECTOR, BUSY_TSS.attributes, 0x67, TSS)

PRESENT_WRITABLE_USER: Final = 0x7
LARGE: Final = 0x80
GATE: Final = 0xEE00  # present, callable from ring 3, 64-bit interrupt gate


def enter_real_mode(_memory: GuestMemory) -> Registers:
    """16-bit at CODE."""
    return {**real_mode(CODE >> 4), "rip": 0}


def enter_protected_mode(memory: GuestMemory) -> Registers:
    """32-bit at CODE, flat, without paging; a page directory that maps 4 GiB one to one is there
    for those who turn it on."""
    pages = range(0, 1 << 32, 4 << 20)
    memory.write(
        PAGE_DIRECTORY_32,
        struct.pack(f"<{len(pages)}I", *(gpa | LARGE | PRESENT_WRITABLE_USER for gpa in pages)),
    )
    return {**protected_mode(memory), "rip": CODE, "rsp": STACK}


def enter_long_mode(memory: GuestMemory, handled: Collection[int] = ()) -> Registers:
    """64-bit at CODE in ring 0, the first GiB mapped one to one for ring 3, too. Vectors in
    `handled` go to HANDLER; other exceptions tell their number on FAULT_PORT, and halt."""
    _write_page_tables(memory)
    _write_gdt(memory)
    _write_idt(memory, handled)
    memory.write(TSS, struct.pack("<IQ", 0, STACK).ljust(TASK.limit + 1, b"\0"))
    data = dict.fromkeys(("ds", "es", "fs", "gs", "ss"), DATA_32)
    return {
        **data,
        "cs": CODE_64,
        "tr": TASK,
        "gdtr": Segment(0, 0, 0x3F, GDT),
        "idtr": Segment(0, 0, 0xFFF, IDT),
        "cr0": 0x80000033,
        "cr3": PAGE_TABLES,
        "cr4": 0x20,
        "efer": 0x500,
        "rflags": 0x2,
        "rip": CODE,
        "rsp": STACK,
    }


def _write_gdt(memory: GuestMemory) -> None:
    available = Segment(TSS_SELECTOR, 0x89, TASK.limit, TSS)
    entries = (
        0,
        0,
        descriptor(CODE_64),
        descriptor(DATA_32),
        descriptor(USER_DATA),
        descriptor(USER_CODE_64),
        descriptor(available),
        0,
    )
    memory.write(GDT, struct.pack("<8Q", *entries))


def _write_idt(memory: GuestMemory, handled: Collection[int]) -> None:
    # mov al, VECTOR; out FAULT_PORT, al; hlt; jmp to the hlt
    stubs = b"".join(bytes([0xB0, n, 0xE6, FAULT_PORT, 0xF4, 0xEB, 0xFD, 0x90]) for n in range(256))
    memory.write(STUBS, stubs)
    memory.write(
        IDT,
        b"".join(_gate(HANDLER if n in handled else STUBS + 8 * n) for n in range(256)),
    )


def _gate(offset: int) -> bytes:
    return struct.pack("<HHHHII", offset & 0xFFFF, KERNEL_CS, GATE, offset >> 16, 0, 0)


def _write_page_tables(memory: GuestMemory) -> None:
    pointers, directory = PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000
    pages = range(0, 1 << 30, 2 << 20)
    memory.write(PAGE_TABLES, struct.pack("<Q", pointers | PRESENT_WRITABLE_USER))
    memory.write(pointers, struct.pack("<Q", directory | PRESENT_WRITABLE_USER))
    memory.write(
        directory,
        struct.pack(f"<{len(pages)}Q", *(gpa | LARGE | PRESENT_WRITABLE_USER for gpa in pages)),
    )
