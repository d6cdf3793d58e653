"""For each register a value that it can have, and does not have at a guest's HLT."""

from __future__ import annotations

from typing import Final

from dataspace.registers import Segment
from tests.conformance.machine import Machine, Values
from tests.register_values import CANONICAL, VALUES
from vmm_client.vcpu import Vcpu

LOW: Final = 0xFFFFFFFF

LONG: Final[Values] = {
    **VALUES,
    **{f"pdpte{number}": 0xA001 + 0x1000 * number for number in range(4)},
    "apic_base": 0xFEE00800,
    "idtr": Segment(0, 0, 0xFFE, CANONICAL),
}
_PROTECTED: Final[Values] = {
    "cr0": 0x31,
    "rsp": 0x5566,
    "cs": Segment(0x28, 0xC9B, 0xFFFFFFFF, 0),
}
# They change by themselves, or have no second value everywhere; tests of their own.
APART: Final = frozenset({"tsc", "tsc_offset", "activity", "xss"})
MOVING: Final = frozenset({"tsc", "tsc_offset"})


def values(machine: Machine) -> Values:
    """For each register that the engine claims, but for those APART, in its widest mode."""
    names = {claim.removeprefix("register:") for claim in machine.claims if "register:" in claim}
    chosen = LONG if machine.widest() == "long" else LONG | _PROTECTED
    cut = (lambda value: value) if machine.widest() == "long" else _low
    return {name: cut(value) for name, value in chosen.items() if name in names}


def _low(value: int | Segment) -> int | Segment:
    if isinstance(value, Segment):
        return value._replace(base=value.base & LOW)
    return value & LOW


def everything(vcpu: Vcpu) -> Values:
    """All registers of a stopped vCPU that do not change by themselves."""
    return dict(vcpu.fetch(*sorted(set(vcpu.engine_registers) - MOVING)))
