"""A machine: one vCPU in a PC. The loop that turns exits into calls of the board."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from dataspace.registers import Segment
from dataspace.vcpu_page import Injection, Reason
from vmm_client.boards.pc import PC, Ending
from vmm_client.errors import Closed, VmsessionError
from vmm_client.exits import Exit
from vmm_client.vcpu import SLICE_SECONDS, Vcpu

FAILURES: Final = {
    Reason.SHUTDOWN: ("the guest shut down by a triple fault", ""),
    Reason.MEMORY_FAULT: ("the guest left its memory", "give it more memory, or look for a bug"),
    Reason.INTERNAL_ERROR: (
        "the engine cannot execute this instruction",
        "try another engine; `vmm doctor` tells what each can do",
    ),
    Reason.INVALID_STATE: ("the engine cannot enter this state", "look for a bug in the VMM"),
}


class GuestFailed(VmsessionError):  # noqa: N818 - see vmm_client.errors
    """The guest cannot go on; `reason` is that of the exit."""

    def __init__(self, exit_: Exit) -> None:
        what, hint = FAILURES[exit_.reason]
        super().__init__(f"{what}: {exit_}", hint)
        self.reason = exit_.reason


class Machine:
    """`run` on one thread; `wake` from any, when something happened to a device from outside.

    `trace` sees every exit before it is answered.
    """

    def __init__(self, vcpu: Vcpu, pc: PC, trace: Callable[[Exit], None] | None = None) -> None:
        self._vcpu = vcpu
        self._pc = pc
        self._trace = trace
        self._woken = threading.Event()
        self._halted = False
        self._offered = False
        self._window_asked = False

    def run(self, registers: Mapping[str, int | Segment]) -> Ending:
        """Start the vCPU with these registers and run the machine until it ends.

        Raises GuestFailed; Unsupported where the engine lacks a register, or interrupts and a device
        has one; SessionEnded and the others of `Vcpu.wait`.
        """
        self._vcpu.require(*registers)
        exit_ = self._next_exit()
        self._vcpu.registers.update(registers)
        while (ending := self._settled(exit_)) is None:
            exit_ = self._next_exit()
            self._handle(exit_)
        return ending

    def wake(self) -> None:
        """A device has something to do: let the guest stop soon, or stop sleeping."""
        self._woken.set()
        with suppress(Closed):  # the session may just have ended
            self._vcpu.request_window()

    def leave(self) -> None:
        """End the machine, from any thread: `run` returns Ending.LEFT soon."""
        self._pc.leave()
        self._woken.set()
        with suppress(Closed):
            self._vcpu.pause()

    def _next_exit(self) -> Exit:
        """Run the vCPU until it exits. When a timer is due before that, ask for a window."""
        exit_ = self._vcpu.turn(self._seconds_left())
        if exit_ is None:
            self._vcpu.request_window()
            exit_ = self._vcpu.wait()
        assert exit_ is not None  # without a time limit
        if self._offered:
            self._offered = False
            if exit_.injection is Injection.TAKEN:
                self._pc.acknowledge()
        if self._trace:
            self._trace(exit_)
        return exit_

    def _handle(self, exit_: Exit) -> None:
        router = self._pc.router
        if exit_.route(router.ports, router.mmio):
            return
        if exit_.reason is Reason.HLT:
            self._halted = True
            self._pc.halt(interrupts_enabled=exit_.interrupts_enabled)
        elif exit_.reason is Reason.MSR:
            self._ignore_msr(exit_)
        elif exit_.reason is Reason.WINDOW:
            self._window_asked = False
        elif exit_.reason in FAILURES:
            raise GuestFailed(exit_)

    @staticmethod
    def _ignore_msr(exit_: Exit) -> None:
        """MSRs that the engine does not keep read 0 and ignore writes: early code of Linux reads
        some (IA32_MISC_ENABLE) before it could survive a #GP."""
        if exit_.is_read:
            exit_.reply(0)
        else:
            exit_.accept()

    def _settled(self, exit_: Exit) -> Ending | None:
        """Before the next run: let time pass for the devices, sleep if the guest halted, offer an
        interrupt. The machine's ending, if it came to that."""
        pc = self._pc
        if self._woken.is_set():
            self._woken.clear()
        pc.advance(time.monotonic_ns())
        while self._halted and pc.ended is None and pc.pending() is None:
            self._sleep()
        if pc.ended is None:
            self._offer(exit_)
        self._halted = False
        return pc.ended

    def _sleep(self) -> None:
        left = self._seconds_left()
        self._woken.wait(SLICE_SECONDS if left is None else min(left, SLICE_SECONDS))
        self._woken.clear()
        self._vcpu.check_alive()
        self._pc.advance(time.monotonic_ns())

    def _offer(self, exit_: Exit) -> None:
        """An interrupt that enters the guest only if it can; otherwise a window is asked for."""
        vector = self._pc.pending()
        if vector is None:
            return
        self._vcpu.require("interrupts")
        interruptible = self._halted or exit_.interruptible
        # In the middle of an instruction nobody knows yet what is possible at its end.
        if interruptible or (exit_.mid_instruction and exit_.interrupts_enabled):
            self._offered = True
            self._vcpu.inject(vector)
        if not interruptible and not self._window_asked:
            self._window_asked = True
            self._vcpu.request_window()

    def _seconds_left(self) -> float | None:
        deadline = self._pc.next_deadline()
        return None if deadline is None else max(0.0, (deadline - time.monotonic_ns()) / 1e9)
