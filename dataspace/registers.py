"""The registers of a vCPU by name: the order is that of `enum vcpu_scalar` and `enum vcpu_segment`
in `proto/vcpu_page.h`; a test holds them together."""

from __future__ import annotations

from typing import Final, NamedTuple


class Segment(NamedTuple):
    """A segment register or descriptor table.

    `attributes` is AMD's packed 16-bit form (APM vol. 2, 15.5): bits 0-3 type, 4 S, 5-6 DPL, 7 P,
    8 AVL, 9 L, 10 D/B, 11 G. `limit` is in bytes, granularity already applied. Tables use `limit`
    and `base` only.
    """

    selector: int
    attributes: int
    limit: int
    base: int


SCALARS: Final = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
    *("rip", "rflags"),
    *("cr0", "cr2", "cr3", "cr4", "cr8"),
    *("dr0", "dr1", "dr2", "dr3", "dr6", "dr7"),
    *("efer", "xcr0", "xss"),
    *("pdpte0", "pdpte1", "pdpte2", "pdpte3"),
    *("sysenter_cs", "sysenter_sp", "sysenter_ip"),
    *("star", "lstar", "cstar", "fmask", "kernel_gs_base"),
    *("tsc", "tsc_offset", "tsc_aux"),
    *("activity", "interruptibility"),
    *("apic_base", "pat"),
)

SEGMENTS: Final = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr", "gdtr", "idtr")

SCALAR_INDEX: Final = {name: index for index, name in enumerate(SCALARS)}
SEGMENT_INDEX: Final = {name: index for index, name in enumerate(SEGMENTS)}
