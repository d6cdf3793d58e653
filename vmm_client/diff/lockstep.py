"""Runs one guest on two engines until they differ."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from dataspace.vcpu_page import Reason
from vmm_client.diff.code import Instruction, instruction_at, number
from vmm_client.diff.compare import Difference, differences, memory_difference
from vmm_client.diff.cpu_model import common
from vmm_client.diff.guest import DiffMode, Guest
from vmm_client.diff.pace import Pace, by_exit, by_instruction, first_led, second_led
from vmm_client.diff.side import Side
from vmm_client.diff.stop import Registers
from vmm_client.diff.trap_flag import forget_trap_flag
from vmm_client.diff.undefined import STATUS, undefined_flags, undefined_registers
from vmm_client.errors import VmsessionError

REMEMBERED: Final = 8  # instructions, the last is the one after which the engines differ
GOES_ON: Final = (Reason.DEBUG, Reason.COMPLETED)


class CannotStep(VmsessionError):  # noqa: N818 - see vmm_client.errors
    """Neither engine can execute one instruction at a time in this mode."""

    def __init__(self, mode: DiffMode) -> None:
        super().__init__(
            f"no instruction of mode {mode.value} can be stepped on these engines",
            "compare by exits: --exits",
        )


@dataclass(frozen=True)
class Outcome:
    """`compared` stops were looked at, the last included. `ending` is how the guest ended on the
    first engine, None where the limit came before. No `differences`: they behaved alike."""

    engines: tuple[str, str]
    compared: int
    ending: Reason | None
    differences: tuple[Difference, ...]
    history: tuple[Instruction, ...]


class Lockstep:
    """Two sides, made one processor as far as they can be. `run` may be called again and again."""

    def __init__(self, first: Side, second: Side) -> None:
        """Both must be of the same memory size, and new."""
        self._sides = first, second
        if "cpuid" in first.features & second.features:
            leaves = common(first.cpuid(), second.cpuid())
            first.set_cpuid(leaves)
            second.set_cpuid(leaves)
        self._reset: Registers = first.start()
        second.start()

    def run(self, guest: Guest, *, step: bool, limit: int, seed: int = 0) -> Outcome:
        """Until the guest ends, `limit` stops were compared, or the engines differ. `seed` decides
        what devices answer.

        Raises CannotStep, ImageError, SessionEnded.
        """
        pace = self._pace(guest) if step else by_exit
        self._enter(guest, seed)
        first, second = self._sides
        registers = first.registers
        history: deque[Instruction] = deque(maxlen=REMEMBERED)
        for compared in range(1, limit + 1):
            at = instruction_at(first.memory, registers)
            history.append(at)
            one, other = pace(first, second, at)
            # What is undefined stays so until it is written again: between exits nobody knows what
            # is, between steps the second takes over what the first made.
            flags = undefined_flags(at, number(registers, "rcx")) if step else STATUS
            others = undefined_registers(at, number(one.registers, "rflags"))
            found = differences(one, other, flags, others)
            if step:
                forget_trap_flag(first, second, one)
            if in_memory := memory_difference(first.view, second.view):
                found.append(in_memory)
            if found or one.reason not in GOES_ON:
                return self._outcome(compared, one.reason, found, history)
            registers = one.registers
            taken = {name: registers[name] for name in ("rflags", *others)}
            if step and not taken.items() <= other.registers.items():
                second.charge(taken)
        return self._outcome(limit, None, [], history)

    def _pace(self, guest: Guest) -> Pace:
        able = [self._steps(side, guest) for side in self._sides]
        if all(able):
            return by_instruction
        if not any(able) or guest.mode is not DiffMode.USER:
            raise CannotStep(guest.mode)
        return second_led if able[0] else first_led

    def _steps(self, side: Side, guest: Guest) -> bool:
        """Whether this engine steps here: one that emulates ring 0 only cannot in ring 3."""
        if "debug" not in side.features or guest.mode is not DiffMode.USER:
            return "debug" in side.features
        side.enter(guest, self._reset, 0)
        return side.advance(step=True).reason is not Reason.INTERNAL_ERROR

    def _enter(self, guest: Guest, seed: int) -> None:
        for side in self._sides:
            side.enter(guest, self._reset, seed)

    def _outcome(
        self,
        compared: int,
        ending: Reason | None,
        found: list[Difference],
        history: deque[Instruction],
    ) -> Outcome:
        first, second = self._sides
        engines = first.engine, second.engine
        return Outcome(engines, compared, ending, tuple(found), tuple(history))
