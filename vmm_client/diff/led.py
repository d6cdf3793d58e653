"""Stepping an engine that cannot: it is led by one that can.

In ring 3 of `DiffMode.USER` a HLT raises #GP, whose handler is a HLT that exits. So one is planted
where the other engine's step ended; when it is reached, what the fault changed is put back. The guest
must leave IDT, GDT and the stack of ring 0 as they were given to it.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from dataspace.vcpu_page import Reason
from vmm_client.diff.code import instruction_at, number
from vmm_client.diff.guest import (
    KERNEL_STACK,
    STUB,
    STUBS,
    USER_CODE,
    USER_DATA,
    VECTORS,
)
from vmm_client.diff.side import Side
from vmm_client.diff.stop import Registers, Stop

HLT: Final = b"\xf4"
GENERAL_PROTECTION: Final = 13
RESUME: Final = 0x10000  # RF, set in the image of RFLAGS that a fault pushes


class Frame(NamedTuple):
    """What a fault in ring 3 pushes (SDM volume 3, 6.14.2)."""

    error: int
    rip: int
    cs: int
    rflags: int
    rsp: int
    ss: int


FRAME: Final = struct.Struct("<6Q")
FRAME_AT: Final = KERNEL_STACK - FRAME.size


def handled(registers: Registers) -> int | None:
    """The vector whose handler these registers are in, None elsewhere."""
    vector = (number(registers, "rip") - STUBS) // len(STUB)
    return vector if 0 <= vector < VECTORS else None


def follow(side: Side, leader: Side, lead: Stop) -> Stop:
    """Take `side` to where `leader` stands. If it gets elsewhere, that stop is the answer."""
    target = instruction_at(leader.memory, lead.registers)
    if target.gpa is None or handled(lead.registers) is not None:
        return _on(side)
    kept = side.memory.read(target.gpa, 1)
    side.memory.write(target.gpa, HLT)
    stop = _on(side)
    side.memory.write(target.gpa, kept)
    frame = Frame(*FRAME.unpack(side.memory.read(FRAME_AT, FRAME.size)))
    planted = handled(stop.registers) == GENERAL_PROTECTION and frame.rip == target.rip
    if stop.reason is not Reason.HLT or not planted:
        return stop
    side.memory.write(FRAME_AT, leader.memory.read(FRAME_AT, FRAME.size))
    before: Registers = {
        "rip": frame.rip,
        "rflags": frame.rflags & ~RESUME,
        "rsp": frame.rsp,
        "cs": USER_CODE,
        "ss": USER_DATA,
    }
    side.charge(before)
    stop.registers |= before
    stop.reason = Reason.DEBUG
    return stop


def _on(side: Side) -> Stop:
    stop = side.advance(step=False)
    accesses = stop.accesses
    while stop.reason is Reason.COMPLETED:
        stop = side.advance(step=False)
        accesses += stop.accesses
    stop.accesses = accesses
    return stop
