"""The fixed ACPI power hardware: ACPI specification 6.5, sections 4.8.3.1 to 4.8.3.3.

PM1a event block (status and enable), PM1a control block, PM timer. There is no SMI command port:
the machine is in ACPI mode from the start, as SCI_EN says. Nothing here raises an event, so the
status reads zero and the SCI is never driven. `_S5_` in the DSDT (`vmm_client.boot.acpi`) tells a
guest that soft-off is sleep type `SLEEP_TYPE_S5`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

SLEEP_TYPE_S5: Final = 5
SCI_ENABLED: Final = 0x0001
SLEEP_ENABLE: Final = 0x2000
TIMER_FREQUENCY: Final = 3_579_545
SECOND: Final = 1_000_000_000


class PowerEvents:
    """PM1 status at 0 (always zero) and PM1 enable at 2, 16 bits each."""

    __slots__ = ("_enabled",)

    def __init__(self) -> None:
        self._enabled = 0

    def read(self, offset: int, size: int) -> int:
        return self._enabled << 16 >> 8 * offset & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        mask = ((1 << 8 * size) - 1) << 8 * offset >> 16
        self._enabled = self._enabled & ~mask | value << 8 * offset >> 16


class PowerControl:
    """PM1 control, 16 bits: SLP_EN with the sleep type of S5 powers the machine off. A sleep state
    that the DSDT does not offer is ignored."""

    __slots__ = ("_power_off",)

    def __init__(self, power_off: Callable[[], None]) -> None:
        self._power_off = power_off

    def read(self, offset: int, _size: int) -> int:
        return SCI_ENABLED >> 8 * offset

    def write(self, offset: int, _size: int, value: int) -> None:
        control = value << 8 * offset
        if control & SLEEP_ENABLE and control >> 10 & 7 == SLEEP_TYPE_S5:
            self._power_off()


class PowerTimer:
    """The 32-bit PM timer, 3.579545 MHz: a clock for guests that do not trust the TSC."""

    __slots__ = ("_clock",)

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock

    def read(self, offset: int, size: int) -> int:
        ticks = self._clock() * TIMER_FREQUENCY // SECOND
        return ticks >> 8 * offset & ((1 << 8 * size) - 1)

    def write(self, _offset: int, _size: int, _value: int) -> None:
        """The timer is read-only."""
