"""What the numbers should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.benchmarks.result import Result


@dataclass(frozen=True, slots=True)
class Target:
    """A bound of a result's value, in its unit, or of its ratio; an upper one unless `at_least`."""

    bound: float
    of_ratio: bool = False
    at_least: bool = False
    where: str = ""

    def met(self, result: Result) -> bool:
        """Whether the result keeps it. A result without the ratio does not."""
        number = result.ratio if self.of_ratio else result.value
        if number is None:
            return False
        return number >= self.bound if self.at_least else number <= self.bound

    def text(self, unit: str) -> str:
        """For people, as in `<= 1.25x where a core is spare`."""
        sense = ">=" if self.at_least else "<="
        amount = f"{self.bound:g}x" if self.of_ratio else f"{self.bound:g} {unit}"
        return f"{sense} {amount} {self.where}".rstrip()


PORT_EXIT: Final = Target(1.25, of_ratio=True, where="where a core is spare")
NO_COLLAPSE: Final = Target(0.5, of_ratio=True, at_least=True)
OPENING: Final = Target(20)
HANDOVER: Final = Target(3)
SESSION_MEMORY: Final = Target(10)

TARGETS: Final = {
    "kvm.port_exit.python_vmm": PORT_EXIT,
    "kvm.port_exit.python_vmm.best": PORT_EXIT,
    "handover.c": HANDOVER,
    "handover.python": HANDOVER,
    "open_to_first_exit": OPENING,
    "open_to_first_exit.kvm": OPENING,
    "open_to_first_exit.soft": OPENING,
    "crowd.kvm.session_memory": SESSION_MEMORY,
    "crowd.soft.session_memory": SESSION_MEMORY,
    "kvm.exits_per_second.4_vcpus": NO_COLLAPSE,
    "kvm.exits_per_second.16_vcpus": NO_COLLAPSE,
    "soft.exits_per_second.4_vcpus": NO_COLLAPSE,
    "soft.exits_per_second.16_vcpus": NO_COLLAPSE,
}
