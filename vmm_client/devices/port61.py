"""System control port B at 0x61: Intel 82371 (PIIX) data sheet, "NMI status and control"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vmm_client.devices.pit8254 import Pit8254

GATE2: Final = 0x01
WRITABLE: Final = 0x0F
REFRESH: Final = 0x10
OUT2: Final = 0x20

# A refresh request every 15.085 us toggles the bit; guests time short delays by it.
REFRESH_NS: Final = 15_085


class Port61:
    """Gate and OUT of PIT channel 2 and the refresh toggle. There is no speaker, and no parity or
    channel check: bits 1 to 3 are kept, bits 6 and 7 are zero."""

    __slots__ = ("_clock", "_control", "_pit")

    def __init__(self, pit: Pit8254, clock: Callable[[], int]) -> None:
        self._pit = pit
        self._clock = clock
        self._control = 0

    def read(self, _offset: int, _size: int) -> int:
        refresh = REFRESH if self._clock() // REFRESH_NS & 1 else 0
        return self._control | refresh | (OUT2 if self._pit.out2() else 0)

    def write(self, _offset: int, _size: int, value: int) -> None:
        self._control = value & WRITABLE
        self._pit.set_gate2(bool(value & GATE2))
