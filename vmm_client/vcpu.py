"""A virtual CPU: run it, wait for its exits, answer them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import suppress
from typing import Final, Protocol

from dataspace._page import Waiter
from dataspace.vcpu_page import InjectType, Reason, ReplyFlag, mask
from vmm_client.breakpoints import Breakpoint, BreakpointKind, control
from vmm_client.cpuid import CpuidLeaf
from vmm_client.errors import Closed, MidInstruction, NotStarted, NotStopped
from vmm_client.exits import Exit
from vmm_client.page import Page
from vmm_client.registers import Registers
from vmm_client.reply import Reply
from vmm_client.serving import Serving
from vmm_client.written import WrittenLog

# How long a wait goes on before it asks whether the session still lives: a killed engine or core is
# noticed within about this time, and the exits themselves pay nothing for it.
SLICE_SECONDS: Final = 0.5

_INVALID_STATE: Final = Reason.INVALID_STATE


class Owner(Protocol):
    """What a vCPU needs of its session."""

    @property
    def written_log(self) -> WrittenLog: ...

    @property
    def engine_registers(self) -> Collection[str]: ...

    def has(self, name: str) -> bool: ...

    def require(self, *features: str) -> None: ...

    def cpuid(self, vcpu: str) -> list[CpuidLeaf]: ...

    def set_cpuid(self, vcpu: str, leaves: Iterable[CpuidLeaf]) -> None: ...

    def check_alive(self) -> None:
        """Raises SessionEnded if the session ended without this program's asking."""
        ...


class Vcpu:
    """Made by `Session.create_vcpu`, ended with its session.

    Serve it with `for exit in vcpu.exits()`, or with `run` and `wait`, by one thread at a time
    (Busy). `pause` and `request_window` may be called from any thread at any time. `registers`,
    `inject` and the other parts of a reply need a vCPU that is stopped at an exit: NotStarted,
    NotStopped. Everything raises Closed after the session's end.
    """

    def __init__(self, name: str, page: Page, owner: Owner) -> None:
        """Take over a page whose vCPU never ran."""
        self.name = name
        self.reply = Reply(page.vmm)
        self.exit = Exit(name, page, self.reply)
        self.registers = Registers(self)
        self.serving = Serving(name, page.release)
        self._page = page
        self._owner = owner
        self._log = owner.written_log
        self._told = 0  # the position in the log up to which the engine knows
        self._told_before = 0  # where a refused reply leaves it
        self._seen = page.waiter.exit_seq
        self._running = False
        self.may_stay = False  # an `Entrypoint` serves it
        self._staying = False
        self._stay_lock = threading.Lock()

    # Running.

    def exits(self, wanted: Iterable[str] = ()) -> Generator[Exit, None, None]:
        """Run the vCPU and give its exits, STARTUP first; each iteration runs on with the reply
        made so far. `wanted` as in `want`.

        It is the same `Exit` every time. Ends when this program closes the session; raises
        SessionEnded when it ends otherwise, UnknownExit, Busy, Closed.
        """
        with self.serving:
            with self._stay_lock:  # another thread's `run` is done then, or finds it served
                self._staying = False
            self.want(*wanted)
            exchange, log = self._page.waiter.exchange, self._log
            while True:
                if self._running:  # an earlier wait was broken off
                    sequence = self._seen
                else:
                    if self._told != log.position:
                        self._tell_written()
                    self._running = True
                    sequence = exchange(SLICE_SECONDS)
                if sequence == self._seen:
                    self.check_alive()
                    if not self._await(None):
                        return
                    sequence = self._page.waiter.exit_seq
                yield self._take(sequence)

    def run(self) -> None:
        """Run the stopped vCPU with the reply made so far; does not wait. Raises NotStopped.

        A vCPU that stays is run from any thread, and its exits go on to the one that serves it.
        """
        if self._leave_stay():
            return
        with self.serving:
            self.resume()

    def stay(self) -> None:
        """Served by an `Entrypoint`: leave this vCPU stopped at this exit when the handler is done,
        until `run`. Any thread may look at it and answer meanwhile. Raises NotStopped, NotStarted,
        Closed; ValueError where no entrypoint serves it."""
        with self._stay_lock:
            self.stopped_page()
            if not self.may_stay:
                raise ValueError(f"{self.name} cannot stay: it is served by no Entrypoint")
            self._staying = True

    @property
    def staying(self) -> bool:
        """Whether it stays at this exit."""
        return self._staying

    def wait(self, timeout: float | None = None) -> Exit | None:
        """Wait until the vCPU is stopped: its exit, or None when `timeout` seconds are over.

        Raises ValueError for a timeout below 0, SessionEnded, Closed, UnknownExit, Busy, NotStarted.
        """
        with self.serving:
            if not self._running:
                self.stopped_page()
                return self.exit
            if self._await(timeout):
                return self._take(self._page.waiter.exit_seq)
        if self.serving.closed:
            raise Closed(self.name)
        return None

    def turn(self, timeout: float | None = None) -> Exit | None:
        """`run`, and `wait` for at most `timeout` seconds, in one step. Raises as both do."""
        first = SLICE_SECONDS if timeout is None else min(timeout, SLICE_SECONDS)
        if first < 0:
            raise ValueError(f"timeout of {timeout} seconds, below 0")
        with self.serving:
            with self._stay_lock:
                self._begin()
            sequence = self._page.waiter.exchange(first)
            if sequence != self._seen:
                return self._take(sequence)
        return self.wait(None if timeout is None else timeout - first)

    def resume(self) -> None:
        """`run`, for whoever holds `serving`."""
        self._begin()
        self._page.waiter.run()

    def resume_unless_staying(self) -> None:
        """`resume`, unless it stays, or stayed and was run already. For whoever holds `serving`."""
        with self._stay_lock:
            if not self._staying and not self._running:
                self.resume()

    def poll(self) -> Exit | None:
        """The exit, if there is a new one; does not wait. For whoever holds `serving`."""
        if self._page.waiter.exit_seq == self._seen:
            return None
        with self._stay_lock:  # another thread's `fetch` moves the counter too, and is done then
            sequence = self._page.waiter.exit_seq
            return self._take(sequence) if sequence != self._seen else None

    @property
    def running(self) -> bool:
        """Whether it was run and no exit has been taken since."""
        return self._running

    def check_alive(self) -> None:
        """Raises SessionEnded if the session ended without this program's asking; Refused, BadMessage
        if a stream to it did."""
        self._page.check()
        self._owner.check_alive()

    def awaited(self) -> tuple[Waiter, int]:
        """What `wait_any` takes: the waiter, and the exit counter that was seen."""
        return self._page.waiter, self._seen

    # Any thread, any time.

    def pause(self) -> int:
        """Ask for the exit PAUSED, whatever the guest does; on a stopped vCPU the next run gives
        it before a guest instruction. Requests coalesce; this one's number is returned."""
        return self._ask(Waiter.pause)

    def request_window(self) -> int:
        """Ask for the exit WINDOW as soon as the guest can take an external interrupt."""
        return self._ask(Waiter.window)

    @property
    def pauses_acknowledged(self) -> int:
        """The number of the last `pause` that the last PAUSED answered."""
        return self._open_page().engine.pause_ack

    @property
    def tsc_khz(self) -> int:
        """Nominal frequency of the guest's time-stamp counter in kHz, 0 where not known."""
        return self._open_page().engine.tsc_khz

    # The reply to the present exit.

    def want(self, *registers: str) -> None:
        """Have these registers delivered with every exit at an instruction boundary from the next
        reply on; stays until it is called again. STARTUP delivers all. KeyError: no such name."""
        self._open_page().vmm.want(*mask(registers))

    def fetch(self, *registers: str) -> Registers:
        """Have these registers delivered now, at the exit where the vCPU stands.

        What was answered so far is kept. Raises MidInstruction, KeyError, SessionEnded, Closed.
        """
        page = self.stopped_page()
        if self.exit.mid_instruction:
            raise MidInstruction(self.name)
        with self._stay_lock, self.reply.asking(*mask(registers)):
            self._running = True
            if page.waiter.exchange(SLICE_SECONDS) == self._seen and not self._await(None):
                raise Closed(self.name)
            self._running = False
            self._seen = page.waiter.exit_seq
        self.exit.take(self._seen)
        return self.registers

    def inject(self, vector: int) -> None:
        """Inject an external interrupt with the next run; see `Exit.injection` for the result."""
        self._stopped_reply().inject(InjectType.INTERRUPT, vector)

    def inject_nmi(self) -> None:
        """Make an NMI pending with the next run."""
        self._stopped_reply().inject(InjectType.NMI, 2)

    def inject_exception(self, vector: int, error_code: int | None = None) -> None:
        """Raise an exception (vector 0 to 31) in the guest with the next run."""
        self._stopped_reply().inject(InjectType.EXCEPTION, vector, error_code)

    def withdraw_window(self) -> None:
        """Forget the requests for a window made so far, with the next run."""
        self._stopped_reply().set_flag(ReplyFlag.WITHDRAW_WINDOW)

    def step(self) -> None:
        """Execute one instruction with the next run, or finish this one, and stop with DEBUG; see
        REPLY_STEP in vcpu_page.h. Raises Unsupported."""
        self._owner.require("debug")
        self._stopped_reply().set_flag(ReplyFlag.STEP)

    def set_breakpoints(self, *breakpoints: Breakpoint) -> None:
        """Have these breakpoints, at most four, instead of those before, from the next run on; none
        clears them. Raises Unsupported, ValueError for what the hardware could not have."""
        executing = all(each.kind is BreakpointKind.EXECUTE for each in breakpoints)
        self._owner.require("debug", *(() if executing else ("watch",)))
        word = control(breakpoints)
        self._stopped_reply().set_breakpoints((each.address for each in breakpoints), word)

    def request_nmi_window(self) -> None:
        """Ask with the next run for the exit NMI_WINDOW, as soon as an NMI would be delivered; stays
        until then, or `withdraw_window`. Raises Unsupported."""
        self._owner.require("NMI_WINDOW")
        self._stopped_reply().set_flag(ReplyFlag.NMI_WINDOW)

    # What it is.

    @property
    def engine_registers(self) -> Collection[str]:
        """Names of the registers that the engine has."""
        return self._owner.engine_registers

    def has(self, name: str) -> bool:
        """Whether the engine has this feature, exit or register."""
        return self._owner.has(name)

    def require(self, *names: str) -> None:
        """Raises Unsupported unless the engine has these features, exits and registers."""
        self._owner.require(*names)

    def cpuid(self) -> list[CpuidLeaf]:
        """What CPUID answers. Raises Refused: see GetVcpuCpuid in vm_session.proto."""
        self._open_page()
        return self._owner.cpuid(self.name)

    def set_cpuid(self, leaves: Iterable[CpuidLeaf]) -> None:
        """Set the whole table of a vCPU that never ran. Raises Refused: see SetVcpuCpuid in
        vm_session.proto; ValueError for a number beyond 32 bits."""
        self._open_page()
        self._owner.set_cpuid(self.name, leaves)

    def stopped_page(self) -> Page:
        """The page, of which the VMM's half may be written now. NotStopped, NotStarted, Closed."""
        page = self._open_page()
        if self._running:
            raise NotStopped(self.name)
        if self.exit.reason is Reason.NONE:
            raise NotStarted(self.name)
        return page

    def close(self) -> None:
        """Let go of the page. A thread that serves the vCPU is woken, and ends within a second."""
        self.serving.close()
        if not self.serving.released:
            with suppress(ValueError):  # it may be released at this moment
                self._page.waiter.pause()

    def _begin(self) -> None:
        """The reply is complete, the vCPU about to run."""
        if self._running:
            raise NotStopped(self.name)
        if self._told != self._log.position:
            self._tell_written()
        self._staying = False
        self._running = True

    def _leave_stay(self) -> bool:
        """Run a vCPU that stays, although another thread serves it: False if it does not stay."""
        with self._stay_lock:
            if not self._staying:
                return False
            self._open_page()
            try:
                self.resume()
            except ValueError as error:  # closed at this moment
                raise Closed(self.name) from error
            return True

    def _ask(self, request: Callable[[Waiter], int]) -> int:
        try:
            return request(self._open_page().waiter)
        except ValueError as error:  # closed at this moment
            raise Closed(self.name) from error

    def _stopped_reply(self) -> Reply:
        self.stopped_page()
        return self.reply

    def _open_page(self) -> Page:
        if self.serving.closed:
            raise Closed(self.name)
        return self._page

    def _take(self, sequence: int) -> Exit:
        """The vCPU is stopped: what was replied before is done with."""
        self._seen = sequence
        self._running = False
        reply = self.reply
        if reply.dirty:
            reply.renew()
        elif reply.answered:
            reply.renew_value()
        exit_ = self.exit.take(sequence)
        if exit_.reason is _INVALID_STATE:
            self._told = self._told_before
        else:
            self._told_before = self._told
        return exit_

    def _tell_written(self) -> None:
        if self.exit.reason is Reason.NONE:
            return  # the first run carries no reply: the second tells
        ranges, self._told = self._log.since(self._told)
        self.reply.written(ranges)

    def _await(self, timeout: float | None) -> bool:
        """Wait for an exit; False when the time is over, or this program closed the session."""
        remaining = math.inf if timeout is None else timeout
        waiter = self._page.waiter
        while not self.serving.closed:
            part = remaining if remaining < SLICE_SECONDS else SLICE_SECONDS
            if waiter.wait(self._seen, part) != self._seen:
                return True
            remaining -= part
            if remaining <= 0:
                return False
            self.check_alive()
        return False
