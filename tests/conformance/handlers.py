"""A guest's interrupt handlers, in every mode: each reports the event that called it, and returns.

Protected mode returns by POPFD and RETF, since not every engine has its IRET."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from dataspace.vcpu_page import Injection, Reason
from tests.conformance.machine import BITS, IDT, Machine, awaited, expect
from tests.guests.assemble import assemble
from vmm_client.vcpu import Vcpu

HANDLERS: Final = 0xE000
STRIDE: Final = 64
IP, ERROR, VECTOR = 0x92, 0x91, 0x90  # ports, in the order of the reports
WITH_ERROR: Final = frozenset({8, 10, 11, 12, 13, 14, 17})  # SDM vol. 3, table 6-1

_REAL: Final = """
    push eax; push bp; mov bp, sp
    movzx eax, word ptr [bp + 6]; out {ip}, eax
    mov al, {vector}; out {port}, al
    pop bp; pop eax; iret
"""
_PROTECTED: Final = """
    push eax; mov eax, [esp + {behind}]; out {ip}, eax
    {tell_error}
    mov al, {vector}; out {port}, al
    pop eax; {drop_error}
    push dword ptr [esp + 8]; popfd; retf 4
"""
_LONG: Final = """
    push rax; mov rax, [rsp + {behind}]; out {ip}, eax
    {tell_error}
    mov al, {vector}; out {port}, al
    pop rax; {drop_error}
    iretq
"""


class Event(NamedTuple):
    """What a handler saw."""

    vector: int
    ip: int  # where it returns to
    error: int | None = None


def install(machine: Machine, mode: str, vectors: Iterable[int]) -> None:
    """Write handlers and their table. The limit of the table stays as the mode has it."""
    for number, vector in enumerate(vectors):
        at = HANDLERS + STRIDE * number
        machine.ram.write(at, _handler(mode, vector, at))
        if mode == "real":
            machine.ram.write(4 * vector, at.to_bytes(4, "little"))
        else:
            size = 8 if mode == "protected" else 16
            machine.ram.write(IDT + size * vector, _gate(mode, at).ljust(size, b"\0"))


def next_event(vcpu: Vcpu) -> tuple[Event, Injection]:
    """Run a vCPU into a handler: what it reports, and the injection's result at its first exit."""
    vcpu.run()
    return awaited_event(vcpu)


def awaited_event(vcpu: Vcpu) -> tuple[Event, Injection]:
    """As `next_event`, of a vCPU that runs."""
    exit_ = awaited(vcpu, Reason.PORT)
    result = exit_.injection
    assert exit_.address == IP, exit_
    ip, error = exit_.value, None
    exit_ = expect(vcpu, Reason.PORT)
    if exit_.address == ERROR:
        error = exit_.value
        exit_ = expect(vcpu, Reason.PORT)
    assert exit_.address == VECTOR, exit_
    assert exit_.injection is Injection.NONE
    return Event(exit_.value, ip, error), result


def _handler(mode: str, vector: int, at: int) -> bytes:
    word = BITS[mode] // 8
    has_error = mode != "real" and vector in WITH_ERROR
    stack = "esp" if mode == "protected" else "rsp"
    source = {"real": _REAL, "protected": _PROTECTED}.get(mode, _LONG).format(
        ip=IP,
        port=VECTOR,
        vector=vector,
        behind=2 * word if has_error else word,
        tell_error=f"mov eax, [{stack} + {word}]; out {ERROR}, eax" if has_error else "",
        drop_error=f"add {stack}, {word}" if has_error else "",
    )
    code = assemble(source, BITS[mode], at)
    assert len(code) <= STRIDE
    return code


def _gate(mode: str, at: int) -> bytes:
    """An interrupt gate of ring 0: SDM vol. 3, 6.11 and 6.14.1."""
    selector = 0x08 if mode == "protected" else 0x18
    fields = (at & 0xFFFF, selector, 0x8E00, at >> 16)
    return b"".join(field.to_bytes(2, "little") for field in fields)
