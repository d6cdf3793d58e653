"""The probes: which micro-guest answers which question, and how to run one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from dataspace.vcpu_page import Reason
from vmm_client.boot.entry import GuestMemory
from vmm_client.boot.modes import Registers
from vmm_client.connection import Connection
from vmm_client.doctor import guests
from vmm_client.doctor.tables import (
    CODE,
    FAULT_PORT,
    HANDLER,
    RAM_SIZE,
    USER_CODE,
    enter_long_mode,
    enter_protected_mode,
    enter_real_mode,
)
from vmm_client.errors import Unsupported
from vmm_client.vcpu import Vcpu

TIME_LIMIT_SECONDS: Final = 2.0
PAUSE_LIMIT_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Probe:
    """A question and the guest that answers it: code at CODE, in ring 3 at USER_CODE, in a handler
    of `vectors` (and of system calls) at HANDLER."""

    name: str
    enter: Callable[[GuestMemory], Registers]
    code: bytes
    user: bytes = b""
    handler: bytes = b""
    vectors: tuple[int, ...] = ()

    def prepare(self, memory: GuestMemory) -> Registers:
        """Write the guest; the registers to charge at STARTUP."""
        for gpa, part in ((CODE, self.code), (USER_CODE, self.user), (HANDLER, self.handler)):
            if part:
                memory.write(gpa, part)
        if self.vectors:
            return enter_long_mode(memory, self.vectors)
        return self.enter(memory)


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of a probe; `why` says what stopped the guest where it did not pass."""

    probe: str
    passed: bool
    why: str = ""


REAL_MODE: Final = Probe("real mode", enter_real_mode, guests.REAL_MODE)
PROTECTED_MODE: Final = Probe("protected mode", enter_protected_mode, guests.PROTECTED_MODE)
PAGING_32: Final = Probe("32-bit paging", enter_protected_mode, guests.PAGING_32)
LONG_MODE: Final = Probe("long mode, ring 0", enter_long_mode, guests.LONG_MODE)
RING_3: Final = Probe(
    "long mode, ring 3",
    enter_long_mode,
    guests.RING_3,
    user=guests.COUNT_AND_FAULT,
    handler=guests.CHECK_RING_3,
    vectors=(6,),
)
PAGE_FAULT: Final = Probe(
    "page faults",
    enter_long_mode,
    guests.PAGE_FAULT,
    handler=guests.CHECK_PAGE_FAULT,
    vectors=(14,),
)
SOFTWARE_INTERRUPTS: Final = Probe(
    "software interrupts",
    enter_long_mode,
    guests.SOFTWARE_INTERRUPTS,
    handler=guests.COUNT_AND_RETURN,
    vectors=(3, 0x40),
)
SYSCALL: Final = Probe(
    "syscall and sysret",
    enter_long_mode,
    guests.SYSCALL,
    user=guests.CALL_TWICE,
    handler=guests.COUNT_CALLS,
)
SSE: Final = Probe("SSE in ring 0", enter_long_mode, guests.SSE)
SAVE_FPU: Final = Probe("xsave in ring 0", enter_long_mode, guests.SAVE_FPU)
WIDE_ATOMICS: Final = Probe("popcnt and cmpxchg16b", enter_long_mode, guests.WIDE_ATOMICS)

# What a stock 64-bit kernel cannot do without; those that fail most often come first.
STOCK_KERNEL: Final = (
    SAVE_FPU,
    SOFTWARE_INTERRUPTS,
    SYSCALL,
    WIDE_ATOMICS,
    LONG_MODE,
    PAGE_FAULT,
    RING_3,
)
ALL: Final = (
    REAL_MODE,
    PROTECTED_MODE,
    PAGING_32,
    LONG_MODE,
    PAGE_FAULT,
    RING_3,
    SYSCALL,
    SOFTWARE_INTERRUPTS,
    SSE,
    SAVE_FPU,
    WIDE_ATOMICS,
)


def examine(connection: Connection, engine: str, probes: Iterable[Probe]) -> Iterator[Finding]:
    """Run probes one after another. Those that pass share a vCPU, a millisecond each; the next
    after one that does not gets a new session. A guest that hangs costs a few seconds.

    Raises Refused, CoreUnavailable, SessionEnded: no engine to ask.
    """
    rest = deque(probes)
    while rest:
        with bench(connection, engine) as (vcpu, memory):
            passed = True
            while rest and passed:
                probe = rest.popleft()
                why = _attempt(probe, vcpu, memory)
                passed = not why
                yield Finding(probe.name, passed, why)


@contextmanager
def bench(connection: Connection, engine: str) -> Iterator[tuple[Vcpu, GuestMemory]]:
    """A session with memory for a guest, and a vCPU that stands at STARTUP. Raises as `examine`."""
    with (
        connection.create_session(engine, label="doctor") as session,
        connection.create_ram(RAM_SIZE) as ram,
    ):
        session.attach(ram, gpa=0)
        vcpu = session.create_vcpu()
        vcpu.run()
        vcpu.wait()
        yield vcpu, session.memory


def _attempt(probe: Probe, vcpu: Vcpu, memory: GuestMemory) -> str:
    """Enter the guest and run it to its first exit. Empty if that says that all is well."""
    registers = probe.prepare(memory)
    try:
        vcpu.require(*registers)
    except Unsupported as lacking:
        return lacking.message
    vcpu.registers.update(registers)
    return _why_not(vcpu)


def _why_not(vcpu: Vcpu) -> str:
    vcpu.run()
    exit_ = vcpu.wait(TIME_LIMIT_SECONDS)
    if exit_ is None:
        vcpu.pause()
        paused = vcpu.wait(PAUSE_LIMIT_SECONDS)
        return "it comes to no end" if paused else "it hangs, and cannot be paused"
    if exit_.reason is Reason.PORT:
        return _said(exit_.address, exit_.value)
    if exit_.reason is Reason.INTERNAL_ERROR:
        return f"cannot execute {exit_.instruction_bytes.hex(' ') or 'this'}"
    return _STOPPED_BY.get(exit_.reason) or str(exit_)


def _said(port: int, value: int) -> str:
    if (port, value) == (guests.RESULT_PORT, guests.SUCCESS):
        return ""
    return f"exception {value}" if port == FAULT_PORT else "wrong result"


_STOPPED_BY: Final = {Reason.HLT: "wrong result", Reason.SHUTDOWN: "triple fault"}
