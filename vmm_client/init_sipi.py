"""How one processor starts another: INIT, then SIPI.

Source: Intel SDM volume 3, 10.1.1 (table 10-1, the column INIT) and 9.4 (the start-up IPI).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from dataspace.registers import Segment
from dataspace.vcpu_page import Activity

SIGNATURE: Final = 0x600  # EDX tells the processor's family
CLEARED: Final = (
    *("rax", "rcx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
    *("cr2", "cr3", "cr4", "cr8", "efer"),
    *("dr0", "dr1", "dr2", "dr3", "interruptibility"),
)
TABLE: Final = Segment(0, 0, 0xFFFF, 0)

# What INIT does not name it leaves alone: FPU, XCR0, TSC and the MSRs. So it does CD and NW of CR0,
# which have no meaning here, and stand as after power-up.
INIT: Final[Mapping[str, int | Segment]] = MappingProxyType(
    {
        **dict.fromkeys(CLEARED, 0),
        **dict.fromkeys(("es", "ss", "ds", "fs", "gs"), Segment(0, 0x93, 0xFFFF, 0)),
        "rip": 0xFFF0,
        "rflags": 0x2,
        "cr0": 0x6000_0010,
        "rdx": SIGNATURE,
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


def start_up(vector: int) -> dict[str, int | Segment]:
    """What SIPI changes: real mode at `vector` * 4096. ValueError for a vector beyond 255."""
    if not 0 <= vector <= 255:
        raise ValueError(f"vector {vector} is not within 0..255")
    return {
        "cs": Segment(vector << 8, 0x9B, 0xFFFF, vector << 12),
        "rip": 0,
        "activity": Activity.ACTIVE,
    }
