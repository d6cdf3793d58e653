"""Breakpoints: from messages to `struct vcpu_debug` of vcpu_page.h (DR7: SDM vol. 3, 17.2.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vmsession.v1 import vcpu_pb2

from core_service.refusal import invalid
from dataspace.vcpu_page import BREAKPOINTS

CONDITIONS: Final = {
    vcpu_pb2.BREAKPOINT_KIND_EXECUTE: 0,
    vcpu_pb2.BREAKPOINT_KIND_WRITE: 1,
    vcpu_pb2.BREAKPOINT_KIND_ACCESS: 3,
}
LENGTHS: Final = {1: 0, 2: 1, 4: 3, 8: 2}


def debug_control(breakpoints: Sequence[vcpu_pb2.Breakpoint]) -> int:
    """The control word. Raises Refusal INVALID_ARGUMENT."""
    if len(breakpoints) > BREAKPOINTS:
        raise invalid("breakpoints", f"{len(breakpoints)} breakpoints", f"at most {BREAKPOINTS}")
    return sum(_bits(index, breakpoint_) for index, breakpoint_ in enumerate(breakpoints))


def _bits(index: int, breakpoint_: vcpu_pb2.Breakpoint) -> int:
    field = f"breakpoints[{index}]"
    size = breakpoint_.size or 1
    if breakpoint_.kind not in CONDITIONS:
        raise invalid(f"{field}.kind", breakpoint_.kind, "one of BreakpointKind")
    if breakpoint_.kind == vcpu_pb2.BREAKPOINT_KIND_EXECUTE and size != 1:
        raise invalid(f"{field}.size", size, "0 or 1 for EXECUTE")
    if size not in LENGTHS:
        raise invalid(f"{field}.size", size, "0, 1, 2, 4 or 8")
    if breakpoint_.address % size:
        raise invalid(f"{field}.address", f"{breakpoint_.address:#x}", f"a multiple of {size}")
    condition = CONDITIONS[breakpoint_.kind] | LENGTHS[size] << 2
    return 1 << 2 * index | condition << 16 + 4 * index
