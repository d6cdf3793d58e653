"""What one vCPU has to do, said a second time: the reference for the random steps of `driver`.

The model knows where the guest stands, what waits for the next instruction boundary, and what the guest
must have counted. After each run it is shown the exit, and what was asked while the guest ran; it raises
DisagreementError where the engine did anything else than the contract (docs/exits.md).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from dataspace.vcpu_page import Injection, InjectType, Reason
from tests.conformance.stress.guest import (
    COMMAND_PORT,
    DEVICE,
    DEVICE_OFFSET,
    IN_PORT,
    OUT_PORT,
    STRING_BYTES,
    STRING_PORT,
    Command,
    Tally,
)
from tests.conformance.stress.requests import Pending, Requests

BETWEEN: Final = frozenset({Reason.PAUSED, Reason.WINDOW, Reason.COMPLETED})
DEVICE_ADDRESS: Final = DEVICE + DEVICE_OFFSET


class DisagreementError(AssertionError):
    """The engine did what the contract does not allow."""


@dataclass(frozen=True)
class Seen:
    """An exit, as the VMM sees it."""

    reason: Reason
    address: int
    is_read: bool
    bytes: int
    value: int
    injection: Injection
    interruptible: bool
    interrupt_flag: bool
    ip: int | None
    pauses_acknowledged: int
    halted: bool  # where registers are delivered


@dataclass(frozen=True)
class Answer:
    """The reply to an exit, as far as it matters here."""

    value: int = 0  # what the guest reads
    inject: InjectType | None = None
    complete: bool = False
    withdraw: bool = False
    wake: bool = False  # registers are charged that end a HLT
    rbx: int | None = None
    unusable: bool = False


def certain(requests: int) -> Pending:
    """What is known of requests while the vCPU ran, once it has stopped with another exit."""
    return Pending.YES if requests else Pending.NO


@dataclass
class Meanwhile:
    """What was asked from other threads between the run and the exit."""

    paused: int = 0  # the highest number of a pause by page, as it is now
    pauses: int = 0  # without a number
    windows: int = 0
    released: bool = False  # the spinning guest was let go


@dataclass
class Model:
    """One vCPU with `guest.SOURCE`, from the STARTUP exit on."""

    halt_ip: int
    pauses: Requests = field(default_factory=Requests)
    windows: Requests = field(default_factory=Requests)
    attached: bool = False  # memory at DEVICE
    device: int = 0  # the value there
    code: set[int] = field(default_factory=lambda: {0x11111111})
    counts: Counter[str] = field(default_factory=Counter)
    at: Reason = Reason.STARTUP
    due: str = "command"  # the next exit of the guest's own program
    exact: bool = True  # the vCPU stands at an exit of its program, nowhere between
    interrupt_flag: bool | None = False  # None: on its way through sti or cli
    interruptible: bool = False
    undelivered: bool = False  # an event entered, and its handler may not have returned
    spinning: bool = False
    read: int | None = None
    storing: bool = False
    _halted: bool = False
    _flag_after: bool = False
    _string_left: int = 0
    _answer: Answer = field(default_factory=Answer)
    _rbx: int = 0
    _rbx_possible: set[int] = field(default_factory=lambda: {0})

    @property
    def rbx(self) -> int:
        """What was charged last."""
        return self._rbx

    @property
    def silent(self) -> bool:
        """A run would give no exit, until somebody asks for one."""
        window = self.windows.must and self.interruptible
        return self.spinning and not self.pauses.must and not window

    def run(self, answer: Answer) -> None:
        """The vCPU runs on with this answer."""
        self._answer = answer
        if answer.unusable:
            return
        if answer.withdraw:
            self.windows.withdrawn()
        if answer.rbx is not None:
            self.charge(answer.rbx)
        if self.at in (Reason.PORT, Reason.MMIO):
            self._answered(answer.value)
        if self.at is Reason.HLT and answer.wake:
            self._awake()

    def charge(self, rbx: int) -> None:
        """The register was written."""
        self._rbx = rbx
        # between two instructions nobody knows whether the guest has stored it for this turn
        self._rbx_possible = {rbx} if self.exact else self._rbx_possible | {rbx}

    def exit(self, seen: Seen, meanwhile: Meanwhile) -> None:
        """The vCPU stopped. Raises DisagreementError."""
        if meanwhile.released:
            self.spinning = False
        if self._answer.unusable:
            self._expect(seen.reason is Reason.INVALID_STATE, seen, "the reply was unusable")
            self._expect(seen.injection is Injection.NONE, seen, "nothing was injected")
            self.pauses.kept(meanwhile.paused, certain(meanwhile.pauses))
            self.windows.kept(0, certain(meanwhile.windows))
            return
        self._injected(seen)
        self._stopped(seen, meanwhile)
        self.at = seen.reason
        self.interruptible = seen.interruptible
        self.counts[seen.reason.name] += 1

    def check(self, tally: Tally) -> None:
        """At an exact exit: what the guest has counted. Raises DisagreementError."""
        told = {
            "commands": self.counts["commands"],
            "halts": self.counts["halts"],
            "interrupts": self.counts["interrupts"],
            "nmis": self.counts["nmis"],
            "exceptions": self.counts["exceptions"],
        }
        counted = {name: getattr(tally, name) for name in told}
        if counted != told:
            raise DisagreementError(f"the guest counted {counted}, it must be {told}")
        if self.due != "command":
            return
        if tally.rbx not in self._rbx_possible or tally.code not in self.code:
            raise DisagreementError(
                f"rbx {tally.rbx:#x} of {self._rbx_possible}, code {tally.code:#x} of {self.code}"
            )
        if self.read is not None and tally.read != self.read:
            raise DisagreementError(f"the guest read {tally.read:#x}, it was given {self.read:#x}")
        self._rbx_possible = {self._rbx}

    def _answered(self, value: int) -> None:
        if self.due == "command":
            self._command(Command(value))
        elif self.due == "string" and self._string_left:
            return
        else:
            if self.due in ("in", "load"):
                self.read = value & 0xFFFFFFFF
            self.due = "command"

    def _command(self, command: Command) -> None:
        self.due = {
            Command.OUT: "out",
            Command.IN: "in",
            Command.HALT: "halt",
            Command.STRING: "string",
        }.get(command, "command")
        self.spinning = command is Command.SPIN
        self.storing = command is Command.STORE
        self._string_left = STRING_BYTES if command is Command.STRING else 0
        if command in (Command.LOAD, Command.STORE):
            self._access(command)
        self._flag_after = bool(self.interrupt_flag)
        if command in (Command.ALLOW, Command.FORBID):
            self._flag_after = command is Command.ALLOW

    def _access(self, command: Command) -> None:
        if not self.attached:
            self.due = command.name.lower()
        elif command is Command.LOAD:
            self.read = self.device
        else:
            self.device = self._rbx

    def _awake(self) -> None:
        if self.due == "halt":
            self.due = "command"
            self.counts["halts"] += 1

    def _injected(self, seen: Seen) -> None:
        kind = self._answer.inject
        expected = Injection.NONE
        if kind is not None:
            taken = kind is not InjectType.INTERRUPT or self.interruptible
            expected = Injection.TAKEN if taken else Injection.NOT_TAKEN
        self._expect(seen.injection is expected, seen, f"the injection must be {expected.name}")
        if expected is Injection.TAKEN and kind is not None:
            self.counts[_COUNTED[kind]] += 1
            self.undelivered = True
            if self.at is Reason.HLT or self._halted:
                self._awake()

    def _stopped(self, seen: Seen, meanwhile: Meanwhile) -> None:
        further = self._goes_on(seen)
        if not further:
            completed = seen.reason is Reason.COMPLETED
            self._expect(
                completed is self._answer.complete, seen, "`complete` and COMPLETED differ"
            )
        preempted = further or seen.reason is Reason.COMPLETED
        self._pause_due(seen, meanwhile, preempted)
        self._window_due(seen, meanwhile, preempted or seen.reason is Reason.PAUSED)
        if seen.reason in BETWEEN:
            self._between(seen)
        else:
            self._program(seen)

    def _pause_due(self, seen: Seen, meanwhile: Meanwhile, preempted: bool) -> None:
        asked, unnumbered = meanwhile.paused, certain(meanwhile.pauses)
        if seen.reason is Reason.PAUSED:
            wrong = self.pauses.satisfied(seen.pauses_acknowledged, asked, unnumbered)
            self._expect(not wrong, seen, f"pause: {wrong}")
        elif preempted:
            self.pauses.kept(asked, unnumbered)
        else:
            self._expect(not self.pauses.must, seen, "a pause is due")
            self.pauses.passed(asked, unnumbered)

    def _window_due(self, seen: Seen, meanwhile: Meanwhile, preempted: bool) -> None:
        unnumbered = certain(meanwhile.windows)
        if self._answer.withdraw:  # which may have come later
            unnumbered = min(unnumbered, Pending.MAYBE)
        if seen.reason is Reason.WINDOW:
            wrong = self.windows.satisfied(0, 0, unnumbered)
            self._expect(not wrong, seen, f"window: {wrong}")
            self._expect(seen.interruptible, seen, "no interrupt could be taken")
        elif preempted or not self._opened():
            self.windows.kept(0, unnumbered)
        else:
            self._expect(not self.windows.must, seen, "a window is due")
            self.windows.passed(0, unnumbered)

    def _opened(self) -> bool:
        """The guest could take an interrupt at the boundary that the last run began with. Later ones do
        not count: an engine that emulates may come to the next exit before it looks again."""
        return self.interruptible and self._answer.inject is None

    def _goes_on(self, seen: Seen) -> bool:
        """A further exit of the same string instruction."""
        again = seen.reason is Reason.PORT and seen.address == STRING_PORT
        return again and 0 < self._string_left < STRING_BYTES

    def _between(self, seen: Seen) -> None:
        self.exact = False
        self._halted = seen.halted
        if seen.interrupt_flag:
            self._expect(self.interrupt_flag is not False or self._flag_after, seen, "IF is clear")
        if self._flag_after != self.interrupt_flag:
            self.interrupt_flag = None

    def _program(self, seen: Seen) -> None:
        """An exit of the guest's own program must be the one that is due."""
        self._expect(not self.spinning, seen, "the guest spins")
        self.interrupt_flag = self._flag_after
        self.exact, self.undelivered, self._halted = True, False, False
        here = (seen.reason, seen.address, seen.is_read)
        if self.due == "halt":
            self._expect(here[0] is Reason.HLT and seen.ip == self.halt_ip, seen, "HLT is due")
        else:
            self._expect(here == _DUE[self.due], seen, f"{self.due} is due")
        if self.due == "command":
            self.counts["commands"] += 1
        elif self.due == "out":
            self._expect(seen.value == self.counts["commands"], seen, "another value is due")
        elif self.due == "store":
            self._expect(seen.value == self._rbx, seen, f"rbx is {self._rbx:#x}")
        elif self.due == "string":
            self._string_left -= seen.bytes
            self._expect(self._string_left >= 0, seen, "the string is longer than it is")
        if self._string_left == 0 or self.due != "string":
            flags = (seen.interrupt_flag, seen.interruptible)
            self._expect(flags == (self.interrupt_flag,) * 2, seen, f"IF is {self.interrupt_flag}")

    def _expect(self, holds: bool, seen: Seen, why: str) -> None:
        if not holds:
            raise DisagreementError(f"{why}, but: {seen}\nat {self}")


_COUNTED: Final = {
    InjectType.INTERRUPT: "interrupts",
    InjectType.NMI: "nmis",
    InjectType.EXCEPTION: "exceptions",
}
_DUE: Final = {
    "command": (Reason.PORT, COMMAND_PORT, True),
    "out": (Reason.PORT, OUT_PORT, False),
    "in": (Reason.PORT, IN_PORT, True),
    "string": (Reason.PORT, STRING_PORT, True),
    "load": (Reason.MMIO, DEVICE_ADDRESS, True),
    "store": (Reason.MMIO, DEVICE_ADDRESS, False),
}
