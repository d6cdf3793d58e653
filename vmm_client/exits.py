"""The exit of a vCPU: what the guest did, and the VMM's answer to it.

One `Exit` per vCPU is used over and over: what it says holds until the vCPU runs again. The first
32 bytes of the record, which every handler looks at, are copied and checked at once; the rest is
decoded when it is asked for. See `struct vcpu_exit` in `proto/vcpu_page.h`.
"""

from __future__ import annotations

from typing import Final, Protocol

from dataspace._page import ExitHead
from dataspace.vcpu_page import (
    BREAKPOINTS,
    DATA_BYTES,
    DEBUG_STEP,
    ExitFlag,
    Injection,
    Reason,
    ReplyFlag,
    ReplyRefusal,
)
from vmm_client.errors import UnknownExit
from vmm_client.page import Page
from vmm_client.reply import Reply

_PORT: Final = Reason.PORT
_MMIO: Final = Reason.MMIO
_MSR: Final = Reason.MSR
_DEBUG: Final = Reason.DEBUG
_FAULT: Final = ReplyFlag.FAULT
# Plain numbers: `&` with an IntFlag makes another IntFlag, for a microsecond.
_MID_INSTRUCTION: Final = int(ExitFlag.MID_INSTRUCTION)
_INTERRUPTIBLE: Final = int(ExitFlag.INTERRUPTIBLE)
_IF: Final = int(ExitFlag.IF)


class Bus(Protocol):
    """What answers at ports or guest-physical addresses; a value fits in `size` bytes, 1 to 8."""

    def read(self, address: int, size: int) -> int: ...
    def write(self, address: int, size: int, value: int) -> None: ...


class Exit(ExitHead):
    """Why the vCPU stopped, and the reply to that.

    `reason`: `Reason`. `flags`: `ExitFlag` bits. `address`: port, guest-physical address or MSR.
    `is_read`: the guest reads, and waits for a value. `size`: bytes of one access, `count`: number
    of accesses. `value`: what the guest writes, where it is at most 8 bytes in all; else `data`.
    `sequence`: the number of this exit, from 1.

    A read that nobody answers floats high, as on an empty bus. An MSR access that nobody answers
    raises #GP in the guest, as an MSR that does not exist.
    """

    __slots__ = ("_name", "_page", "_reply")

    def __init__(self, name: str, page: Page, reply: Reply) -> None:
        """Reason NONE until the first `take`. `name` is the vCPU's."""
        super().__init__(page.waiter, tuple(Reason))
        self._name = name
        self._page = page
        self._reply = reply

    def take(self, sequence: int) -> Exit:
        """Copy the head of the record that the engine has just published.

        Raises UnknownExit for what no engine may publish.
        """
        try:
            if self.take_head(sequence) is _MSR:
                self._reply.set_flag(_FAULT)
        except LookupError:
            told = self._page.engine
            raise UnknownExit(self._name, told.reason, told.size, told.count) from None
        return self

    # What the engine tells beyond the head.

    @property
    def data(self) -> bytes:
        """The `size * count` bytes that the guest writes, at most 256."""
        total = min(self.size * self.count, DATA_BYTES)
        if total <= 8:
            return self.value.to_bytes(8, "little")[:total]
        return self._page.engine.data[:total]

    @property
    def ip(self) -> int | None:
        """The instruction's linear address within its segment (rip), where it is told."""
        return self._page.engine.ip if self.flags & ExitFlag.IP_VALID else None

    @property
    def instruction_length(self) -> int:
        """Bytes of the instruction, 0 where not known."""
        return self._page.engine.instruction_length

    @property
    def instruction_bytes(self) -> bytes:
        """The instruction that the engine could not execute, as far as known; at most 16 bytes."""
        return self._page.engine.instruction_bytes

    @property
    def injection(self) -> Injection:
        """What became of the injection in the last reply."""
        return _INJECTIONS.get(self._page.engine.injection, Injection.NONE)

    @property
    def detail(self) -> int:
        """DR6 (DEBUG), the failed check (INVALID_STATE), or the engine's own (INTERNAL_ERROR)."""
        return self._page.engine.detail

    @property
    def stepped(self) -> bool:
        """DEBUG: the instruction that `Vcpu.step` asked for is done."""
        return self.reason is _DEBUG and self.detail & DEBUG_STEP != 0

    @property
    def breakpoints(self) -> tuple[int, ...]:
        """DEBUG: which of the breakpoints given to `Vcpu.set_breakpoints` were hit, by position."""
        hits = self.detail if self.reason is _DEBUG else 0
        return tuple(index for index in range(BREAKPOINTS) if hits >> index & 1)

    @property
    def nmi_open(self) -> bool:
        """An NMI would be delivered at once; only engines that give NMI_WINDOW tell it."""
        return self.flags & ExitFlag.NMI_OPEN != 0

    @property
    def mid_instruction(self) -> bool:
        """The instruction is not finished: no registers are delivered here."""
        return self.flags & _MID_INSTRUCTION != 0

    @property
    def interruptible(self) -> bool:
        """An external interrupt that is injected with the next run would be taken."""
        return self.flags & _INTERRUPTIBLE != 0

    @property
    def interrupts_enabled(self) -> bool:
        """The guest's interrupt flag."""
        return self.flags & _IF != 0

    # The reply.

    def reply(self, value: int) -> None:
        """Answer a read of at most 8 bytes in all; the low `size * count` bytes count, little-endian.

        Also answers MSR: rdmsr gives `value`. Raises ValueError for what is not within 64 bits.
        """
        self._reply.set_value(value)
        if self.reason is _MSR:
            self._reply.clear_flag(_FAULT)

    def reply_data(self, data: bytes) -> None:
        """Answer a read of any length: `size * count` bytes. Raises ValueError beyond 256."""
        self._reply.set_data(data)

    def accept(self) -> None:
        """MSR: the write is done; no #GP."""
        self._reply.clear_flag(_FAULT)

    def fault(self) -> None:
        """MSR: raise #GP in the guest. Raises ValueError at any other exit."""
        if self.reason not in (_MSR, Reason.INVALID_STATE):
            raise ValueError(f"#GP is an answer to MSR, not to {self.reason.name}")
        self._reply.set_flag(_FAULT)

    def complete(self) -> None:
        """Finish this instruction and stop again right after it, with COMPLETED."""
        self._reply.set_flag(ReplyFlag.COMPLETE)

    def route(self, ports: Bus, mmio: Bus) -> bool:
        """Let a bus serve this exit: True if it was port I/O or MMIO.

        String instructions arrive at the bus one access at a time. Raises UnknownExit for an access
        of no bytes, which no engine may publish.
        """
        if self.reason is _PORT:
            bus = ports
        elif self.reason is _MMIO:
            bus = mmio
        else:
            return False
        if self.count != 1 or not 0 < self.size <= 8:
            self._route_string(bus)
        elif self.is_read:
            self._reply.set_value(bus.read(self.address, self.size))
        else:
            bus.write(self.address, self.size, self.value)
        return True

    def _route_string(self, bus: Bus) -> None:
        total = self.size * self.count
        if not total:
            raise UnknownExit(self._name, self.reason, self.size, self.count)
        step = min(self.size, 8)
        parts = [(at, min(step, total - at)) for at in range(0, total, step)]
        # A port stays the same for a whole string; memory goes up.
        stride = 0 if self.reason is _PORT else 1
        if self.is_read:
            values = (
                bus.read(self.address + at * stride, n).to_bytes(n, "little") for at, n in parts
            )
            self.reply_data(b"".join(values))
            return
        data = self.data
        for at, n in parts:
            value = int.from_bytes(data[at : at + n], "little")
            bus.write(self.address + at * stride, n, value)

    def __repr__(self) -> str:
        try:
            return f"<exit {self.sequence} of {self._name}: {self}>"
        except ValueError:  # the page is gone
            return f"<exit {self.sequence} of {self._name}, closed>"

    def __str__(self) -> str:
        """One line for people, as in `PORT out 0xe9 size 1 value 0x48`."""
        if self.reason in (_PORT, _MMIO, _MSR):
            text = f"{self.reason.name} {_DIRECTION[self.reason][self.is_read]} {self.address:#x}"
            if self.reason is not _MSR:
                text += f" size {self.size}" + (f" count {self.count}" if self.count != 1 else "")
            if self.is_read:
                return text
            wide = self.size * self.count > 8
            return f"{text} data {self.data.hex()}" if wide else f"{text} value {self.value:#x}"
        text = self.reason.name
        if self.reason is Reason.MEMORY_FAULT:
            text += f" {'fetch' if self.flags & ExitFlag.FETCH else 'write'} {self.address:#x}"
        if self.reason is _DEBUG:
            hit = [
                *("step" for _ in range(self.stepped)),
                *(f"breakpoint {n}" for n in self.breakpoints),
            ]
            text += " " + " and ".join(hit)
        if self.ip is not None:
            text += f" at {self.ip:#x}"
        if self.injection:
            text += f" injection {self.injection.name}"
        if self.reason is Reason.INVALID_STATE:
            text += f" {_REFUSALS.get(self.detail, self.detail)} refused"
        if self.reason is Reason.INTERNAL_ERROR:
            text += f" detail {self.detail} bytes [{self.instruction_bytes.hex(' ')}]"
        return text


_DIRECTION: Final = {
    _PORT: ("out", "in"),
    _MMIO: ("write", "read"),
    _MSR: ("wrmsr", "rdmsr"),
}
_INJECTIONS: Final = {int(result): result for result in Injection}
_REFUSALS: Final = {int(check): check.name.lower() for check in ReplyRefusal}
