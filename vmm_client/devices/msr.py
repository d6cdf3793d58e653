"""Model-specific registers that software takes for granted and an engine may leave to the VMM:
Intel SDM volume 4, table 2-2. Any other raises #GP, as one that the processor does not have."""

from __future__ import annotations

from typing import Final

MISC_ENABLE: Final = 0x1A0
FAST_STRINGS: Final = 1 << 0
BRANCH_TRACE_UNAVAILABLE: Final = 1 << 11
EVENT_SAMPLING_UNAVAILABLE: Final = 1 << 12


class ModelSpecificRegisters:
    """IA32_MISC_ENABLE alone. Linux reads it before it can take an exception, to see that nobody
    switched execute-disable off; there is nothing to switch here, so writes are accepted and lost.
    """

    __slots__ = ()

    def read(self, index: int) -> int | None:
        """The 64-bit value, None for #GP."""
        if index != MISC_ENABLE:
            return None
        return FAST_STRINGS | BRANCH_TRACE_UNAVAILABLE | EVENT_SAMPLING_UNAVAILABLE

    def write(self, index: int, _value: int) -> bool:
        """False for #GP."""
        return index == MISC_ENABLE
