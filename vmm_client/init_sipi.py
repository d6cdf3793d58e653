"""How one processor starts another: INIT, then SIPI.

Source: Intel SDM volume 3, 10.1.1 (table 10-1, the column INIT) and 9.4 (the start-up IPI).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from dataspace.registers import Segment
from dataspace.vcpu_page import Activity
from vmm_client.cpuid import CpuidLeaf

FAMILY_6: Final = 0x600
EXTENSION_TYPE: Final = 0x10
CACHING: Final = 0x6000_0000  # CD and NW of CR0
CLEARED: Final = (
    *("rax", "rcx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
    *("cr2", "cr3", "cr4", "cr8", "efer"),
    *("dr0", "dr1", "dr2", "dr3", "interruptibility"),
)
TABLE: Final = Segment(0, 0, 0xFFFF, 0)

# What INIT does not name it leaves alone: FPU, XCR0, TSC and the MSRs.
RESET: Final[Mapping[str, int | Segment]] = MappingProxyType(
    {
        **dict.fromkeys(CLEARED, 0),
        **dict.fromkeys(("es", "ss", "ds", "fs", "gs"), Segment(0, 0x93, 0xFFFF, 0)),
        "rip": 0xFFF0,
        "rflags": 0x2,
        "dr6": 0xFFFF_0FF0,
        "dr7": 0x400,
        "cs": Segment(0xF000, 0x9B, 0xFFFF, 0xFFFF_0000),
        "ldtr": Segment(0, 0x82, 0xFFFF, 0),
        "tr": Segment(0, 0x8B, 0xFFFF, 0),
        "gdtr": TABLE,
        "idtr": TABLE,
        "activity": Activity.WAIT_FOR_SIPI,
    }
)


def init(cr0: int, signature: int) -> dict[str, int | Segment]:
    """What INIT changes. `cr0` is what it was: INIT leaves CD and NW alone. `signature` is the
    processor's, which EDX has afterwards."""
    return {**RESET, "cr0": cr0 & CACHING | EXTENSION_TYPE, "rdx": signature}


def signature(leaves: Iterable[CpuidLeaf]) -> int:
    """Type, family, model and stepping, as CPUID tells them; family 6 where it does not."""
    return next((leaf.eax for leaf in leaves if leaf.function == 1), FAMILY_6)


def start_up(vector: int) -> dict[str, int | Segment]:
    """What SIPI changes: real mode at `vector` * 4096. ValueError for a vector beyond 255."""
    if not 0 <= vector <= 255:
        raise ValueError(f"vector {vector} is not within 0..255")
    return {
        "cs": Segment(vector << 8, 0x9B, 0xFFFF, vector << 12),
        "rip": 0,
        "activity": Activity.ACTIVE,
    }
