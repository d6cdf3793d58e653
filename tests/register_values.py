"""For each register of 64-bit mode a value that it can have, and does not have at a guest's HLT."""

from __future__ import annotations

from typing import Final

from dataspace.registers import Segment

CANONICAL: Final = 0xFFFF800012345000
VALUES: Final[dict[str, int | Segment]] = {
    **dict.fromkeys(("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"), 0x1122334455667788),
    **{f"r{number}": 0x8877665544332211 + number for number in range(8, 16)},
    "rip": 0x4000,
    "rflags": 0x46,
    "cr0": 0x80010031,
    "cr2": 0x12345678,
    "cr3": 0xA000,
    "cr4": 0x220,
    "cr8": 5,
    "dr0": 0x1000,
    "dr1": 0x2000,
    "dr2": 0x3000,
    "dr3": 0x4000,
    "dr6": 0xFFFF0FF1,
    "dr7": 0x401,
    "efer": 0x501,
    "xcr0": 3,
    "sysenter_cs": 8,
    "sysenter_sp": CANONICAL,
    "sysenter_ip": CANONICAL,
    "star": 0x0023001000000000,
    "lstar": CANONICAL,
    "cstar": CANONICAL,
    "fmask": 0x47700,
    "kernel_gs_base": CANONICAL,
    "tsc_aux": 7,
    "pat": 0x0007010600070106,
    "interruptibility": 1,
    "cs": Segment(0x28, 0xA9B, 0xFFFFFFFF, 0),
    "ss": Segment(0x20, 0xC93, 0xFFFFFFFF, 0),
    "es": Segment(0x33, 0xCF3, 0xFFFFFFFF, 0),
    "ds": Segment(0x33, 0xCF3, 0xFFFFFFFF, 0),
    "fs": Segment(0, 0xC93, 0xFFFFFFFF, CANONICAL),
    "gs": Segment(0, 0xC93, 0xFFFFFFFF, CANONICAL),
    "ldtr": Segment(0x50, 0x82, 0x1F, 0x3000),
    "tr": Segment(0x40, 0x8B, 0x67, 0x2000),
    "gdtr": Segment(0, 0, 0x57, CANONICAL),
    "idtr": Segment(0, 0, 0xFFF, CANONICAL),
}
