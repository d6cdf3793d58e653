"""What registers cost: an exit at a boundary against the number of registers that move with it.

The guest halts, and each run moves it past the HLT: `rip` is charged with every reply, so that the floor
has one register charged and none wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice
from time import perf_counter_ns
from typing import Final

from dataspace.registers import SCALARS, SEGMENTS
from dataspace.vcpu_page import Reason
from tests.benchmarks.guest import Guest, guest
from tests.benchmarks.result import Result
from tests.benchmarks.rounds import in_turns
from tests.benchmarks.workplace import Benchmark, Workplace

UNIT: Final = "ns"
PORT_THEN_HALT: Final = bytes.fromhex("e6e9 f4 ebfd")  # out PORT, al; loop: hlt; jmp loop
GENERAL: Final = SCALARS[:16]
SETS: Final = {
    "1": ("rax",),
    "4": GENERAL[:4],
    "16": GENERAL,
    "26": (*GENERAL, *SEGMENTS),
    "all": (*SCALARS, *SEGMENTS),
    "all_and_fpu": (*SCALARS, *SEGMENTS, "fpu"),
}
CHARGED: Final = ("1", "4", "16")


def measure(engine: str, at: Workplace) -> list[Result]:
    """Delivered, and written back, beside an exit that moves nothing but `rip`."""
    floor = f"{engine}.state.none"
    with guest(at.core, engine, PORT_THEN_HALT) as running:
        halted = Halted(running)
        sides: dict[str, Callable[[], float]] = {
            floor: partial(halted.serve, at.effort.exits // 4),
        }
        for label, names in SETS.items():
            sides[f"{engine}.state.wanted_{label}"] = partial(
                halted.serve, at.effort.exits // 4, wanted=names
            )
        for label in CHARGED:
            sides[f"{engine}.state.charged_{label}"] = partial(
                halted.serve, at.effort.exits // 4, charged=SETS[label]
            )
        samples = in_turns(at.effort.rounds, sides)
    nothing = samples.pop(floor)
    compared = (Result.compared(name, UNIT, ours, floor, nothing) for name, ours in samples.items())
    return [Result.of(floor, UNIT, nothing), *compared]


class Halted:
    """A guest that halts for ever."""

    def __init__(self, running: Guest) -> None:
        self._vcpu = running.vcpu
        self._exits = running.exits
        exit_ = next(self._exits)
        assert exit_.reason is Reason.HLT, exit_
        assert exit_.ip is not None
        self._behind = exit_.ip + 1

    def serve(
        self, count: int, wanted: tuple[str, ...] = (), charged: tuple[str, ...] = ()
    ) -> float:
        """Serve `count` exits: nanoseconds an exit. What is wanted is delivered and not looked at."""
        vcpu, registers = self._vcpu, self._vcpu.registers
        vcpu.want(*wanted)
        registers.rip = self._behind
        start = perf_counter_ns()
        for _ in islice(self._exits, count):
            registers.rip = self._behind
            for name in charged:
                registers[name] = 0
        taken = perf_counter_ns() - start
        vcpu.want()
        return taken / count


NAMES: Final = ("none", *(f"wanted_{label}" for label in SETS), *(f"charged_{n}" for n in CHARGED))
KVM: Final = Benchmark(
    tuple(f"kvm.state.{name}" for name in NAMES), partial(measure, "kvm"), engine="kvm"
)
SOFT: Final = Benchmark(
    tuple(f"soft.state.{name}" for name in NAMES), partial(measure, "soft"), engine="soft"
)
