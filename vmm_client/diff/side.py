"""One of the two engines, with the guest on it."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

from dataspace.vcpu_page import Reason
from vmm_client.connection import Connection
from vmm_client.cpuid import CpuidLeaf
from vmm_client.diff import fpu
from vmm_client.diff.answers import answers
from vmm_client.diff.guest import Guest
from vmm_client.diff.stop import Access, Registers, Stop
from vmm_client.exits import Exit

PATIENCE_SECONDS: Final = 10.0  # until a guest that does not exit is paused
DEVICES: Final = (Reason.PORT, Reason.MMIO, Reason.MSR)
RETAINED: Final = frozenset({"apic_base", "tsc", "tsc_offset"})  # an engine has its own


class Side:
    """A session with `memory_size` bytes of RAM at 0 and one vCPU. Owns both; a context manager."""

    def __init__(self, connection: Connection, engine: str, memory_size: int) -> None:
        """Raises Refused, CoreUnavailable."""
        self.engine = engine
        with ExitStack() as stack:
            self._ram = stack.enter_context(connection.create_ram(memory_size))
            self._session = stack.enter_context(connection.create_session(engine, label="diff"))
            self._session.attach(self._ram, 0)
            self.memory = self._session.memory
            self.features = frozenset(self._session.capabilities.features)
            self._vcpu = self._session.create_vcpu()
            self._answers = answers(0)
            self._stack = stack.pop_all()

    @property
    def view(self) -> memoryview:
        """The memory."""
        return self._ram.view

    def cpuid(self) -> list[CpuidLeaf]:
        """What its processor is."""
        return self._vcpu.cpuid()

    def set_cpuid(self, leaves: list[CpuidLeaf]) -> None:
        """Make it another, before `start`."""
        self._vcpu.set_cpuid(leaves)

    def start(self) -> Registers:
        """To STARTUP: the reset state."""
        self._advance_exit()
        self._vcpu.want(*self._vcpu.registers, *self._fpu_names())
        return dict(self._vcpu.registers)

    def enter(self, guest: Guest, reset: Registers, seed: int) -> None:
        """From any stop: put the guest into memory, and charge what it is entered with, on top of
        a reset state that both sides share."""
        entry = guest.load(self.memory)
        self._answers = answers(seed)
        registers = self._vcpu.registers
        mine = {name: reset[name] for name in reset.keys() & set(registers) - RETAINED}
        registers.update({**mine, **entry})
        if "fpu" in self.features:
            registers.fpu = fpu.initial(len(registers.fpu))

    @property
    def registers(self) -> Registers:
        """At this stop."""
        return dict(self._vcpu.registers)

    def charge(self, registers: Registers) -> None:
        """Go on with these registers instead."""
        self._vcpu.registers.update(registers)

    def advance(self, *, step: bool) -> Stop:
        """To the next stop: behind one instruction, or behind the next that accesses a device.

        Raises SessionEnded and the others of `Vcpu.wait`.
        """
        accesses: list[Access] = []
        while True:
            if step:
                self._vcpu.step()
            exit_ = self._advance_exit()
            if exit_.reason not in DEVICES:
                return self._stop(exit_, accesses)
            accesses += self._serve(exit_)
            if not step:
                exit_.complete()

    def _advance_exit(self) -> Exit:
        exit_ = self._vcpu.turn(PATIENCE_SECONDS)
        if exit_ is None:
            self._vcpu.pause()
            exit_ = self._vcpu.wait()
        assert exit_ is not None  # without a time limit
        return exit_

    def _serve(self, exit_: Exit) -> list[Access]:
        size = exit_.size if exit_.reason is not Reason.MSR else 8
        if exit_.is_read:
            values = [next(self._answers) & (1 << 8 * size) - 1 for _ in range(exit_.count or 1)]
        elif exit_.reason is Reason.MSR:
            values = [exit_.value]
        else:
            data = exit_.data
            values = [
                int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)
            ]
        if not exit_.is_read:
            exit_.accept()
        elif len(values) == 1:
            exit_.reply(values[0])
        else:
            exit_.reply_data(b"".join(value.to_bytes(size, "little") for value in values))
        stride = size if exit_.reason is Reason.MMIO else 0
        return [
            Access(exit_.reason, exit_.address + number * stride, size, exit_.is_read, value)
            for number, value in enumerate(values)
        ]

    def _stop(self, exit_: Exit, accesses: list[Access]) -> Stop:
        registers = self._vcpu.registers
        return Stop(
            exit_.reason,
            exit_.address if exit_.reason is Reason.MEMORY_FAULT else None,
            dict(registers),
            fpu.by_name(registers.fpu) if self._fpu_names() else {},
            accesses,
        )

    def _fpu_names(self) -> tuple[str, ...]:
        return ("fpu",) if "fpu" in self.features else ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()
