"""An engine that steps by the processor's own trap flag shows it to the guest where flags are pushed."""

from __future__ import annotations

from typing import Final

from vmm_client.diff.code import linear, number, paging
from vmm_client.diff.side import Side
from vmm_client.diff.stop import Stop

PUSHED: Final = 48  # bytes at most: error code, RIP, CS, RFLAGS, RSP, SS
TRAP: Final = 0x01  # TF, in the second byte of the flags


def forget_trap_flag(first: Side, second: Side, stop: Stop) -> None:
    """Where both have just pushed flags, clear what stepping left in one of them."""
    top = paging(stop.registers).physical(
        first.memory, linear(stop.registers, "ss", number(stop.registers, "rsp"))
    )
    if top is None:
        return
    here = slice(top, top + PUSHED)
    one, other = first.view[here].tobytes(), second.view[here].tobytes()
    if one == other:
        return
    for at, (byte, its) in enumerate(zip(one, other, strict=True), top):
        if byte ^ its == TRAP:
            side = first if byte & TRAP else second
            side.memory.write(at, bytes([byte & its]))
