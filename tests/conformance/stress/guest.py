"""A guest that does what the VMM tells it, one command after the other, and counts in memory what came
to it. Real mode, so that every engine executes it."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from dataspace.registers import Segment
from tests.guests.assemble import assemble
from vmm_client.session import Session

ORIGIN: Final = 0x1000
STACK: Final = 0x8000
RAM_BYTES: Final = 0x10000
DEVICE: Final = 0x20000  # memory or nothing, as the VMM pleases: the guest's es
BYSTANDER: Final = 0x40000  # attached and detached, never touched by the guest
TALLY: Final = 0x500
GO: Final = 0x540  # Command.SPIN ends when this byte is zero
STRING: Final = 0x548
STRING_BYTES: Final = 7

COMMAND_PORT: Final = 0x10
OUT_PORT: Final = 0x11
IN_PORT: Final = 0x12
STRING_PORT: Final = 0x13
DEVICE_OFFSET: Final = 0x20

INTERRUPT: Final = 0x20
NMI: Final = 2
UNDEFINED: Final = 6  # #UD: an exception without an error code


class Command(IntEnum):
    """What the guest is told through COMMAND_PORT."""

    SPIN = 0  # no exit, until GO is zero
    OUT = 1
    IN = 2
    HALT = 3
    ALLOW = 4  # sti
    FORBID = 5  # cli
    LOAD = 6  # from DEVICE
    STORE = 7  # to DEVICE
    STRING = 8
    WORK = 9  # some hundred instructions without an exit


class Tally(NamedTuple):
    """What the guest wrote down, as it stands in memory."""

    commands: int
    spins: int
    halts: int
    interrupts: int
    nmis: int
    exceptions: int
    code: int  # the immediate operand that it executed
    rbx: int
    read: int  # what IN and LOAD got


SOURCE: Final = f"""
    .set TALLY, {TALLY}
next:
    mov edx, 0x11111111             // CODE_AT: the VMM writes other code here
    mov [TALLY+24], edx
    mov [TALLY+28], ebx             // no command changes ebx: it is the VMM's
    inc dword ptr [TALLY]
    in al, {COMMAND_PORT}
    xor ah, ah
    mov si, ax
    add si, si
    jmp word ptr [si+table]
spin:
    inc dword ptr [TALLY+4]
    cmp byte ptr [{GO}], 0
    jne spin
    jmp next
output:
    mov eax, [TALLY]
    out {OUT_PORT}, eax
    jmp next
input:
    in eax, {IN_PORT}
    mov [TALLY+32], eax
    jmp next
halt:
    hlt
    inc dword ptr [TALLY+8]
    jmp next
allow:
    sti
    nop
    jmp next
forbid:
    cli
    jmp next
load:
    mov eax, es:[{DEVICE_OFFSET}]
    mov [TALLY+32], eax
    jmp next
store:
    mov es:[{DEVICE_OFFSET}], ebx
    jmp next
string:
    mov di, {STRING}
    push es
    push ds
    pop es
    mov cx, {STRING_BYTES}
    mov dx, {STRING_PORT}
    cld
    rep insb
    pop es
    jmp next
work:
    mov cx, 100
again:
    loop again
    jmp next
interrupt:
    inc dword ptr [TALLY+12]
    iret
nmi:
    inc dword ptr [TALLY+16]
    iret
exception:
    inc dword ptr [TALLY+20]
    iret
table:
    .word spin, output, input, halt, allow, forbid, load, store, string, work
    .word interrupt, nmi, exception, halt
"""

_WORDS: Final = 14
CODE_AT: Final = ORIGIN + 2  # behind the prefix and the opcode


class Program(NamedTuple):
    """The guest's machine code, and what of it the VMM must know."""

    code: bytes
    vectors: dict[int, int]  # vector: handler's address
    halt: int  # the address of the HLT


def program() -> Program:
    """Assemble the guest."""
    code = assemble(SOURCE, 16, ORIGIN)
    addresses = struct.unpack(f"<{_WORDS}H", code[-2 * _WORDS :])
    interrupt, nmi, exception, halt = addresses[-4:]
    return Program(code, {INTERRUPT: interrupt, NMI: nmi, UNDEFINED: exception}, halt)


def load(session: Session, guest: Program) -> None:
    """Put the guest into memory that is attached at address 0."""
    session.memory.write(ORIGIN, guest.code)
    for vector, handler in guest.vectors.items():
        session.memory.write(4 * vector, struct.pack("<HH", handler, 0))


def tally(session: Session) -> Tally:
    """What the guest has counted so far."""
    return Tally(*struct.unpack("<9I", session.memory.read(TALLY, 36)))


ENTRY: Final[dict[str, int | Segment]] = {
    "cs": Segment(0, 0x9B, 0xFFFF, 0),
    "es": Segment(DEVICE >> 4, 0x93, 0xFFFF, DEVICE),
    "rip": ORIGIN,
    "rsp": STACK,
    "rbx": 0,
}
