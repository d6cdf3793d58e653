"""The FPU area by the names of its registers (XSAVE standard format, SDM volume 1, 13.4 and 10.5.1)."""

from __future__ import annotations

import struct
from typing import Final

X87, SSE, AVX = 1, 2, 4  # bits of XSTATE_BV
XSTATE_BV: Final = 512
YMM: Final = 576
HEADER_END: Final = 576
INITIAL_FCW: Final = 0x37F
INITIAL_MXCSR: Final = 0x1F80

# C0 to C3 are undefined after most x87 instructions (SDM volume 1, 8.1.3).
FSW_COMPARED: Final = 0xFFFF & ~0x4700


def initial(size: int) -> bytes:
    """An area of `size` bytes as FNINIT and a reset of SSE leave it."""
    area = bytearray(size)
    struct.pack_into("<H", area, 0, INITIAL_FCW)
    struct.pack_into("<I", area, 24, INITIAL_MXCSR)
    struct.pack_into("<Q", area, XSTATE_BV, X87 | SSE)
    return bytes(area)


def by_name(area: bytes) -> dict[str, int]:
    """What is compared of an area. A component whose bit in XSTATE_BV is clear has its initial
    values; FOP, FIP and FDP, which processors keep differently, are left out, and so are the
    contents of x87 registers that are tagged empty."""
    if len(area) < HEADER_END:
        return {}
    present = int.from_bytes(area[XSTATE_BV : XSTATE_BV + 8], "little")
    values = _x87(area) if present & X87 else _x87(initial(HEADER_END))
    values["mxcsr"] = int.from_bytes(area[24:28], "little")
    for number in range(16):
        at = 160 + 16 * number
        values[f"xmm{number}"] = _number(area[at : at + 16]) if present & SSE else 0
        if len(area) >= YMM + 256:
            at = YMM + 16 * number
            values[f"ymm{number}h"] = _number(area[at : at + 16]) if present & AVX else 0
    return values


def _x87(area: bytes) -> dict[str, int]:
    fcw, fsw, tags = struct.unpack_from("<HHB", area)
    values = {"fcw": fcw, "fsw": fsw & FSW_COMPARED, "ftw": tags}
    top = fsw >> 11 & 7
    for number in range(8):
        if tags >> (top + number & 7) & 1:
            values[f"st{number}"] = _number(area[32 + 16 * number : 42 + 16 * number])
    return values


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")
