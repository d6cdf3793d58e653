"""What an engine says it can do, and what of the contract it lacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vmsession.v1.core_pb2 import Capabilities

from dataspace.registers import SCALARS, SEGMENTS
from dataspace.vcpu_page import Reason

# `Capabilities.features` in core.proto.
FEATURES: Final = (
    *("fpu", "smp", "parallel", "debug", "watch", "interrupts", "nmi", "exceptions"),
    *("cpuid", "msr_filter", "paging", "long_mode"),
)
EXITS: Final = tuple(reason.name for reason in Reason if reason)
REGISTERS: Final = (*SCALARS, *SEGMENTS)


@dataclass(frozen=True, slots=True)
class Abilities:
    """Names as in `Capabilities` of core.proto."""

    features: tuple[str, ...] = ()
    exits: tuple[str, ...] = ()
    registers: tuple[str, ...] = ()

    @classmethod
    def of(cls, told: Capabilities) -> Abilities:
        """As core tells them."""
        return cls(tuple(told.features), tuple(told.exit_reasons), tuple(told.registers))

    @property
    def missing_features(self) -> list[str]:
        return _missing(self.features, FEATURES)

    @property
    def missing_exits(self) -> list[str]:
        return _missing(self.exits, EXITS)

    @property
    def missing_registers(self) -> list[str]:
        return _missing(self.registers, REGISTERS)


def _missing(has: tuple[str, ...], known: tuple[str, ...]) -> list[str]:
    return [name for name in known if name not in has]
