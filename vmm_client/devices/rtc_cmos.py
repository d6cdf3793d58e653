"""The real-time clock and CMOS memory of the AT: Motorola MC146818 data sheet, with the century
byte at 0x32 that the ACPI FADT names.

The time of day follows an injected wall clock; a guest that sets it moves only its own difference.
It interrupts nobody: the enable bits of status B are kept, the alarm bytes are memory, and status
C stays zero. Periodic, alarm and update-ended interrupts are absent; guests find out by waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

SECOND: Final = 1_000_000_000
SIZE: Final = 128

# UIP rises 244 us before an update, which takes 1984 us (data sheet, "update cycle").
UPDATE_NS: Final = 244_000 + 1_984_000

STATUS_A, STATUS_B, STATUS_C, STATUS_D, CENTURY = 0x0A, 0x0B, 0x0C, 0x0D, 0x32
TIME: Final = (0, 2, 4, 6, 7, 8, 9, CENTURY)
HOURS: Final = 4

SET: Final = 0x80
BINARY: Final = 0x04
HOURS_24: Final = 0x02
UPDATE_IN_PROGRESS: Final = 0x80
VALID_RAM: Final = 0x80
AFTERNOON: Final = 0x80

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
END: Final = datetime.max.replace(microsecond=0, tzinfo=UTC)  # where this clock stops


class RtcCmos:
    """Ports 0x70 (index; its bit 7, the NMI mask, has nothing to mask) and 0x71 (data). `clock`
    gives UTC in nanoseconds since 1970."""

    __slots__ = ("_clock", "_difference", "_index", "_memory", "_set")

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._difference = timedelta()
        self._index = 0
        self._memory = bytearray(SIZE)
        self._memory[STATUS_A] = 0x26
        self._memory[STATUS_B] = HOURS_24
        # The time registers while SET holds the update, in the format of the guest.
        self._set: dict[int, int] | None = None

    def read(self, offset: int, _size: int) -> int:
        index = self._index
        if offset == 0:
            return 0xFF
        if index in TIME:
            return self._registers()[index]
        if index == STATUS_A:
            return self._memory[STATUS_A] | self._updating()
        if index == STATUS_C:
            return 0
        return VALID_RAM if index == STATUS_D else self._memory[index]

    def write(self, offset: int, _size: int, value: int) -> None:
        index = self._index
        if offset == 0:
            self._index = value & 0x7F
        elif index in TIME:
            self._write_time(index, value)
        elif index == STATUS_A:
            self._memory[STATUS_A] = value & 0x7F
        elif index == STATUS_B:
            self._write_status_b(value)
        elif index not in (STATUS_C, STATUS_D):
            self._memory[index] = value

    def _updating(self) -> int:
        held = self._memory[STATUS_B] & SET
        soon = self._clock() % SECOND >= SECOND - UPDATE_NS
        return UPDATE_IN_PROGRESS if soon and not held else 0

    def _registers(self) -> dict[int, int]:
        return self._encode(self._now()) if self._set is None else self._set

    def _now(self) -> datetime:
        try:
            return self._host() + self._difference
        except OverflowError:  # the guest set it to the end of the year 9999, and that has come
            return END

    def _host(self) -> datetime:
        return EPOCH + timedelta(seconds=self._clock() // SECOND)

    def _write_time(self, index: int, value: int) -> None:
        registers = self._registers()
        registers[index] = value
        if self._set is None:
            self._adopt(registers)

    def _write_status_b(self, value: int) -> None:
        if value & SET and self._set is None:
            self._set = self._registers()
        self._memory[STATUS_B] = value
        if not value & SET and self._set is not None:
            registers, self._set = self._set, None
            self._adopt(registers)

    def _adopt(self, registers: dict[int, int]) -> None:
        """Goes on from the time that was set. What is no date changes nothing."""
        try:
            self._difference = self._decode(registers) - self._host()
        except ValueError:
            return

    def _encode(self, time: datetime) -> dict[int, int]:
        hour = self._number(time.hour)
        if not self._memory[STATUS_B] & HOURS_24:
            hour = self._number((time.hour + 11) % 12 + 1) | (AFTERNOON if time.hour >= 12 else 0)
        return {
            0: self._number(time.second),
            2: self._number(time.minute),
            HOURS: hour,
            6: self._number(time.isoweekday() % 7 + 1),
            7: self._number(time.day),
            8: self._number(time.month),
            9: self._number(time.year % 100),
            CENTURY: self._number(time.year // 100),
        }

    def _decode(self, registers: dict[int, int]) -> datetime:
        """The time that the registers show; ValueError if they show none."""
        value = {index: self._value(raw) for index, raw in registers.items()}
        hour = value[HOURS]
        if not self._memory[STATUS_B] & HOURS_24:
            raw = registers[HOURS]
            hour = self._value(raw & ~AFTERNOON) % 12 + (12 if raw & AFTERNOON else 0)
        year = value[CENTURY] * 100 + value[9]
        return datetime(year, value[8], value[7], hour, value[2], value[0], tzinfo=UTC)

    def _number(self, value: int) -> int:
        return value if self._memory[STATUS_B] & BINARY else value // 10 << 4 | value % 10

    def _value(self, raw: int) -> int:
        return raw if self._memory[STATUS_B] & BINARY else (raw >> 4) * 10 + (raw & 0xF)
