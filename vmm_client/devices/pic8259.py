"""The PC's two 8259A interrupt controllers: Intel 8259A data sheet (231468), with the edge/level
control registers (ELCR) of the 82371 (PIIX) at 0x4d0 and 0x4d1.

Modelled: initialisation (ICW1-4), masks, fixed and rotating priorities, every EOI command, special
mask mode, automatic EOI, polling, special fully nested mode, edge and level sensing, and the
default IR7 when a request goes away before it is acknowledged. Left out: the 8080 mode of ICW4,
whose CALL sequence no PC can take.
"""

from __future__ import annotations

from typing import Final

CASCADE: Final = 2

ICW1: Final = 0x10
ICW1_NEEDS_ICW4: Final = 0x01
ICW1_SINGLE: Final = 0x02
ICW1_LEVEL: Final = 0x08
ICW4_AUTO_EOI: Final = 0x02
ICW4_SPECIAL_NESTED: Final = 0x10
OCW3: Final = 0x08


class Pic8259:
    """One controller. `inputs` are the levels at IR0-7, `requests` the IRR, `service` the ISR."""

    __slots__ = (
        "_auto_eoi",
        "_icw1",
        "_initialising",
        "_lowest",
        "_mask",
        "_polled",
        "_read_service",
        "_rotate_on_auto_eoi",
        "_special_mask",
        "_special_nested",
        "_vector",
        "edge_level",
        "inputs",
        "requests",
        "service",
    )

    def __init__(self) -> None:
        self.inputs = 0
        self.requests = 0
        self.service = 0
        self.edge_level = 0
        self._vector = 0
        self._mask = 0
        self._lowest = 7
        self._icw1 = 0
        self._initialising = 0
        self._special_nested = False
        self._special_mask = False
        self._auto_eoi = False
        self._rotate_on_auto_eoi = False
        self._read_service = False
        self._polled = False

    def line(self, number: int, level: int) -> None:
        """Sets input IR`number`. An edge is remembered only as long as its line stays high: a
        request that falls before INTA is answered by the default IR7 (data sheet, figure 9)."""
        bit = 1 << number
        if not level:
            self.inputs &= ~bit
            self.requests &= ~bit
        elif not self.inputs & bit or self._level_sensed(bit):
            self.inputs |= bit
            self.requests |= bit

    def highest(self) -> int | None:
        """The input that would interrupt now; None while the service in progress prevents any."""
        wanted = self.requests & ~self._mask
        if not wanted:
            return None
        # Special mask mode takes the masked levels in service out of the way.
        blocking = self.service & ~self._mask if self._special_mask else self.service
        for step in range(1, 9):
            number = (self._lowest + step) & 7
            in_service = blocking >> number & 1
            # Special fully nested: a slave in service may ask again for a higher level of its own.
            nested = self._special_nested and number == CASCADE
            if wanted >> number & 1 and (nested or not in_service):
                return number
            if in_service:
                return None
        return None

    def acknowledge(self) -> int:
        """INTA: takes the highest request into service and returns its number, 7 for none."""
        number = self.highest()
        if number is None:
            return 7
        bit = 1 << number
        if not self._level_sensed(bit):
            self.requests &= ~bit
        if not self._auto_eoi:
            self.service |= bit
        elif self._rotate_on_auto_eoi:
            self._lowest = number
        return number

    def vector(self, number: int) -> int:
        return self._vector | number

    def read(self, offset: int, _size: int) -> int:
        if self._polled:
            self._polled = False
            return self._poll()
        if offset:
            return self._mask
        return self.service if self._read_service else self.requests

    def write(self, offset: int, _size: int, value: int) -> None:
        if offset:
            if self._initialising:
                self._initialise(value)
            else:
                self._mask = value
        elif value & ICW1:
            self._start(value)
        elif value & OCW3:
            self._control(value)
        else:
            self._end_of_interrupt(value >> 5, value & 7)

    def _level_sensed(self, bit: int) -> bool:
        return bool(self._icw1 & ICW1_LEVEL or self.edge_level & bit)

    def _poll(self) -> int:
        """The answer to a poll command: bit 7 with the number of the request it acknowledged."""
        number = self.highest()
        return 0 if number is None else 0x80 | self.acknowledge()

    def _start(self, icw1: int) -> None:
        self._icw1 = icw1
        self._initialising = 2
        self._mask = 0
        self.service = 0
        # The edge detectors are cleared: a line that is high must fall first, a level is still one.
        self.requests = self.inputs & (0xFF if icw1 & ICW1_LEVEL else self.edge_level)
        self._lowest = 7
        self._special_mask = False
        self._read_service = False
        self._polled = False
        if not icw1 & ICW1_NEEDS_ICW4:
            self._set_icw4(0)

    def _initialise(self, word: int) -> None:
        """Takes ICW2 to ICW4, as many as ICW1 announced. ICW3 has nothing to say: a PC's cascade
        is soldered."""
        stage = self._initialising
        if stage == 2:
            self._vector = word & 0xF8
        elif stage == 4:
            self._set_icw4(word)
        if stage == 2 and not self._icw1 & ICW1_SINGLE:
            self._initialising = 3
        elif stage < 4 and self._icw1 & ICW1_NEEDS_ICW4:
            self._initialising = 4
        else:
            self._initialising = 0

    def _set_icw4(self, word: int) -> None:
        self._auto_eoi = bool(word & ICW4_AUTO_EOI)
        self._special_nested = bool(word & ICW4_SPECIAL_NESTED)
        self._rotate_on_auto_eoi = False

    def _control(self, ocw3: int) -> None:
        if ocw3 & 0x04:
            self._polled = True
        elif ocw3 & 0x02:
            self._read_service = bool(ocw3 & 0x01)
        if ocw3 & 0x40:
            self._special_mask = bool(ocw3 & 0x20)

    def _end_of_interrupt(self, command: int, level: int) -> None:
        """OCW2; `command` is its bits R, SL, EOI."""
        if command in (0b000, 0b100):
            self._rotate_on_auto_eoi = command == 0b100
        elif command == 0b110:
            self._lowest = level
        elif command in (0b001, 0b101):
            served = self._highest_in_service()
            if served is not None:
                self._retire(served, rotate=command == 0b101)
        elif command in (0b011, 0b111):
            self._retire(level, rotate=command == 0b111)

    def _highest_in_service(self) -> int | None:
        """What a non-specific EOI ends. It never ends a level that special mask mode masked."""
        service = self.service & ~self._mask if self._special_mask else self.service
        for step in range(1, 9):
            number = (self._lowest + step) & 7
            if service >> number & 1:
                return number
        return None

    def _retire(self, number: int, *, rotate: bool) -> None:
        self.service &= ~(1 << number)
        if rotate:
            self._lowest = number


class EdgeLevelControl:
    """ELCR1 and ELCR2: a one makes that input level-sensed. IRQ 0, 1, 2, 8 and 13 stay edges."""

    __slots__ = ("_pics",)

    WRITABLE: Final = (0xF8, 0xDE)

    def __init__(self, master: Pic8259, slave: Pic8259) -> None:
        self._pics = (master, slave)

    def read(self, offset: int, _size: int) -> int:
        return self._pics[offset].edge_level

    def write(self, offset: int, _size: int, value: int) -> None:
        pic = self._pics[offset]
        pic.edge_level = value & self.WRITABLE[offset]
        pic.requests |= pic.inputs & pic.edge_level


class CascadedPics:
    """Master and slave as wired in every PC since the AT: the slave's INT is the master's IR2."""

    __slots__ = ("edge_level", "master", "slave")

    def __init__(self) -> None:
        self.master = Pic8259()
        self.slave = Pic8259()
        self.edge_level = EdgeLevelControl(self.master, self.slave)

    def line(self, irq: int, level: int) -> None:
        """Sets the level of `irq`, 0 to 15 without 2, which is the cascade."""
        if irq < 8:
            self.master.line(irq, level)
        else:
            self.slave.line(irq - 8, level)

    def pending(self) -> int | None:
        """The vector that an INTA cycle would give now, None while INTR is low. No side effect
        but that of the wire between the two."""
        number = self._interrupting()
        if number is None:
            return None
        if number != CASCADE:
            return self.master.vector(number)
        served = self.slave.highest()
        return self.slave.vector(7 if served is None else served)

    def acknowledge(self) -> int:
        """The INTA cycle: returns the vector, that of the default IR7 if the request went away."""
        self._interrupting()
        number = self.master.acknowledge()
        if number != CASCADE:
            return self.master.vector(number)
        return self.slave.vector(self.slave.acknowledge())

    def _interrupting(self) -> int | None:
        # The slave's INT drops at each of its acknowledges; what still waits is a new edge.
        if self.slave.requests or self.master.inputs & 1 << CASCADE:
            self.master.line(CASCADE, 0)
            if self.slave.highest() is not None:
                self.master.line(CASCADE, 1)
        return self.master.highest()
