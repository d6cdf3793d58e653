"""Where a guest stands, in terms that do not depend on the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dataspace.registers import Segment
from dataspace.vcpu_page import Reason

Registers = dict[str, int | Segment]


class Access(NamedTuple):
    """One access to a port, an address without memory, or an MSR. How many an exit joins is the
    engine's choice; here they are single."""

    kind: Reason
    address: int
    size: int
    is_read: bool
    value: int  # what was written, or answered

    def __str__(self) -> str:
        direction = "read" if self.is_read else "write"
        return (
            f"{self.kind.name} {direction} {self.address:#x} size {self.size} value {self.value:#x}"
        )


@dataclass(slots=True)
class Stop:
    """An instruction boundary: the exit, the registers, and by name what the FPU area holds.
    `address` is that of a MEMORY_FAULT."""

    reason: Reason
    address: int | None
    registers: Registers
    fpu: dict[str, int]
    accesses: list[Access]  # since the stop before

    @property
    def rip(self) -> int:
        """Of the next instruction."""
        rip = self.registers["rip"]
        assert isinstance(rip, int)
        return rip
