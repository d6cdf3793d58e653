"""The three ways in which a PC's software resets it.

Sources: the keyboard controller's "pulse output port" command (Intel 8042 as the AT used it), port
0x92 of the PS/2, and the reset control register at 0xcf9 of the 82371 (PIIX).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

PULSE_RESET_LINE: Final = 0xFE
FAST_RESET: Final = 0x01
A20_ENABLED: Final = 0x02
RESET_CPU: Final = 0x04
WRITABLE: Final = 0x0A


class KeyboardController:
    """Port 0x64 of an 8042 with nothing behind it: its command 0xfe resets. Status reads as an
    empty bus would, which tells a guest in one read that no keyboard can be had; only the bit
    "input buffer full" is low, so that nobody waits to send the command."""

    __slots__ = ("_reset",)

    STATUS: Final = 0xFD

    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset = reset

    def read(self, _offset: int, _size: int) -> int:
        return self.STATUS

    def write(self, _offset: int, _size: int, value: int) -> None:
        if value == PULSE_RESET_LINE:
            self._reset()


class Port92:
    """System control port A: a rising bit 0 resets. Bit 1 shows A20, which is always enabled."""

    __slots__ = ("_control", "_reset")

    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset = reset
        self._control = A20_ENABLED

    def read(self, _offset: int, _size: int) -> int:
        return self._control

    def write(self, _offset: int, _size: int, value: int) -> None:
        rising = value & ~self._control & FAST_RESET
        self._control = value & FAST_RESET | A20_ENABLED
        if rising:
            self._reset()


class ResetControl:
    """The ports 0xcf8 to 0xcfb: a rising bit 2 of a byte written to 0xcf9 resets, hard or soft as bit 1
    says; for a VM both are one. Wider accesses belong to the PCI configuration address (82371, "RC"),
    which is not there: a guest that looks for PCI must not be reset."""

    __slots__ = ("_control", "_reset")

    SIZE: Final = 4
    REGISTER: Final = 1

    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset = reset
        self._control = 0

    def read(self, offset: int, size: int) -> int:
        return self._control if (offset, size) == (self.REGISTER, 1) else (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        if (offset, size) != (self.REGISTER, 1):
            return
        rising = value & ~self._control & RESET_CPU
        self._control = value & (WRITABLE | RESET_CPU)
        if rising:
            self._reset()
