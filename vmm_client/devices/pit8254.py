"""The 8254 programmable interval timer: Intel data sheet 231164, at the PC's 1.193182 MHz.

All that software can see of the modes 0 to 5: counts and OUT at any moment, latch and read-back,
binary and BCD, the gate of channel 2. Nothing ticks in here: counts are computed from the injected
clock when somebody looks. Two simplifications: a count is loaded with the write, not one clock
pulse after it, and the first low phase of an odd mode 3 count has no extra clock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

FREQUENCY: Final = 1_193_182
SECOND: Final = 1_000_000_000

LSB: Final = 1
MSB: Final = 2
BOTH: Final = 3

PERIODIC: Final = (2, 3)
TRIGGERED: Final = (1, 5)


def pulses(ns: int) -> int:
    """How many clock pulses have passed `ns` nanoseconds after the clock's zero."""
    return ns * FREQUENCY // SECOND


def nanoseconds(pulse: int) -> int:
    """The first nanosecond at which `pulse` has come."""
    return -(-pulse * SECOND // FREQUENCY)


class Counter:
    """One channel. Every `now` is in clock pulses.

    `_start` is the pulse at which the present count was loaded, None while none was or while the
    trigger of the modes 1 and 5 is awaited; `_stopped` the pulse at which the gate went low.
    """

    __slots__ = (
        "_access",
        "_bcd",
        "_count",
        "_high_next",
        "_latched",
        "_low_byte",
        "_next",
        "_start",
        "_status",
        "_stopped",
        "gate",
        "mode",
    )

    def __init__(self) -> None:
        self.mode = 3
        self.gate = True
        self._access = BOTH
        self._bcd = False
        self._count = 0x10000
        self._next: int | None = None
        self._start: int | None = None
        self._stopped: int | None = None
        self._low_byte: int | None = None
        self._high_next = False
        self._latched: list[int] = []
        self._status: int | None = None

    def control(self, word: int) -> None:
        """Takes a control word: bits 5-4 access, 3-1 mode, 0 BCD. Stops the count."""
        self._access = word >> 4 & 3
        mode = word >> 1 & 7
        self.mode = mode if mode < 6 else mode - 4
        self._bcd = bool(word & 1)
        self._start = None
        self._stopped = None
        self._next = None
        self._low_byte = None
        self._high_next = False
        self._latched = []
        self._status = None

    def write(self, value: int, now: int) -> None:
        """Takes a byte of the count, as the access mode has it."""
        if self._access == BOTH and self._low_byte is None:
            self._low_byte = value
            if self.mode == 0:
                self._start = None
            return
        count = value if self._access == LSB else value << 8 | (self._low_byte or 0)
        self._low_byte = None
        self._load(self._decoded(count), now)

    def read(self, now: int) -> int:
        """The latched status, else the next latched byte, else a byte of the running count."""
        if self._status is not None:
            status, self._status = self._status, None
            return status
        if self._latched:
            return self._latched.pop(0)
        count = self._encoded(self.value(now))
        high = self._access == MSB or self._high_next
        self._high_next = self._access == BOTH and not high
        return count >> 8 if high else count & 0xFF

    def latch(self, now: int) -> None:
        """Freezes the count until it is read; a second latch before that is ignored."""
        if not self._latched:
            count = self._encoded(self.value(now))
            wanted = {LSB: [count & 0xFF], MSB: [count >> 8], BOTH: [count & 0xFF, count >> 8]}
            self._latched = wanted[self._access]
            self._high_next = False

    def latch_status(self, now: int) -> None:
        """Freezes OUT, null count, access, mode and BCD, as the read-back command wants them."""
        if self._status is None:
            self._settle(now)
            null_count = self._next is not None or self._start is None
            self._status = (
                self.out(now) << 7
                | null_count << 6
                | self._access << 4
                | self.mode << 1
                | int(self._bcd)
            )

    def set_gate(self, level: bool, now: int) -> None:
        """A low gate holds the modes 0, 2, 3, 4; a rising one restarts 2 and 3, triggers 1, 5."""
        if level == self.gate:
            return
        self._settle(now)
        self.gate = level
        if not level:
            self._stopped = None if self.mode in TRIGGERED else now
            return
        held_since, self._stopped = self._stopped, None
        if self.mode in TRIGGERED:
            self._trigger(now)
        elif self._start is not None and self.mode in PERIODIC:
            self._begin(self._next or self._count, now)
        elif self._start is not None and held_since is not None:
            self._start += now - held_since

    def value(self, now: int) -> int:
        """The counting element, 0 to 0xffff (0 to 9999 in BCD)."""
        self._settle(now)
        if self._start is None:
            return self._count % self._modulus()
        elapsed = self._elapsed(now)
        if self.mode == 2:
            return (self._count - elapsed % self._count) % self._modulus()
        if self.mode == 3:
            return self._square_value(elapsed % self._count) % self._modulus()
        return (self._count - elapsed) % self._modulus()

    def out(self, now: int) -> int:
        """The level of OUT."""
        self._settle(now)
        if self._start is None:
            return int(self.mode != 0)
        elapsed = self._elapsed(now)
        if self.mode in (0, 1):
            return int(elapsed >= self._count)
        if self.mode in (4, 5):
            return int(elapsed != self._count)
        if self._stopped is not None:
            return 1
        if self.mode == 2:
            return int(elapsed % self._count != self._count - 1)
        return int(elapsed % self._count < (self._count + 1) // 2)

    def next_rise(self, now: int) -> int | None:
        """The pulse after `now` at which OUT goes high, None if it will not by itself."""
        self._settle(now)
        if self._start is None or self._stopped is not None:
            return None
        if self.mode in PERIODIC:
            return now + self._count - (now - self._start) % self._count
        rise = self._start + self._count + int(self.mode in (4, 5))
        return rise if rise > now else None

    def _load(self, count: int, now: int) -> None:
        """Takes a count: at once, at the end of the period under way, or with the next trigger."""
        self._settle(now)
        if self.mode in TRIGGERED:
            self._next = count
        elif self.mode in PERIODIC and self._start is not None:
            self._start += (now - self._start) // self._count * self._count
            self._next = count
        else:
            self._begin(count, now)

    def _trigger(self, now: int) -> None:
        if self._next is not None or self._start is not None:
            self._begin(self._next or self._count, now)

    def _begin(self, count: int, now: int) -> None:
        self._count = count
        self._next = None
        self._start = now
        self._stopped = None if self.gate or self.mode in TRIGGERED else now

    def _settle(self, now: int) -> None:
        """Takes the count that waited for the end of the period, if that has come."""
        if self._next is None or self._start is None or self._stopped is not None:
            return
        if self.mode in PERIODIC and now - self._start >= self._count:
            self._begin(self._next, self._start + self._count)

    def _elapsed(self, now: int) -> int:
        """Pulses counted since the count was loaded, which is when `_start` is set."""
        assert self._start is not None
        return (now if self._stopped is None else self._stopped) - self._start

    def _square_value(self, phase: int) -> int:
        """Mode 3 counts down by two, twice a period, from the count made even."""
        half = (self._count + 1) // 2
        return (self._count & ~1) - 2 * (phase % half)

    def _modulus(self) -> int:
        return 10_000 if self._bcd else 0x10000

    def _decoded(self, count: int) -> int:
        """The pulses that a written count stands for; zero is the greatest."""
        if self._bcd:
            count = sum((count >> 4 * digit & 0xF) * 10**digit for digit in range(4))
        return count or self._modulus()

    def _encoded(self, count: int) -> int:
        return int(f"{count:04d}", 16) if self._bcd else count


class Pit8254:
    """The three channels at four ports. `clock` gives monotonic nanoseconds; `interrupt` gets the
    level of channel 0's OUT.

    Only what matters to an edge-sensed input is driven: OUT falls when a control word makes it low
    and for an instant before each rise, so that a tick stays requested until the next one even
    where mode 3 would have taken it back after half a period.
    """

    __slots__ = ("_clock", "_due_ns", "_interrupt", "counters")

    def __init__(self, clock: Callable[[], int], interrupt: Callable[[int], None]) -> None:
        self.counters = (Counter(), Counter(), Counter())
        self.counters[2].gate = False
        self._clock = clock
        self._interrupt = interrupt
        self._due_ns: int | None = None
        interrupt(self.counters[0].out(0))

    def read(self, offset: int, _size: int) -> int:
        if offset == 3:
            return 0xFF
        return self.counters[offset].read(pulses(self._clock()))

    def write(self, offset: int, _size: int, value: int) -> None:
        ns = self._clock()
        now = pulses(ns)
        # What was due before must not be lost to the new count.
        self.tick(ns)
        if offset == 3:
            self._command(value, now)
        else:
            self.counters[offset].write(value, now)
        if offset in (0, 3):
            self._schedule(now)

    def deadline(self) -> int | None:
        """When OUT of channel 0 rises next, in the clock's nanoseconds; None if it will not."""
        return self._due_ns

    def tick(self, ns: int) -> None:
        """Raises the interrupt if a rise was due until `ns`: once, however many were missed."""
        if self._due_ns is not None and ns >= self._due_ns:
            self._interrupt(0)
            self._interrupt(1)
            self._schedule(pulses(ns))

    def set_gate2(self, level: bool) -> None:
        """The gate of channel 2, which system control port B drives."""
        self.counters[2].set_gate(level, pulses(self._clock()))

    def out2(self) -> int:
        """The level of channel 2's OUT, which system control port B shows."""
        return self.counters[2].out(pulses(self._clock()))

    def _schedule(self, now: int) -> None:
        rise = self.counters[0].next_rise(now)
        self._due_ns = None if rise is None else nanoseconds(rise)

    def _command(self, word: int, now: int) -> None:
        channel = word >> 6
        if channel == 3:
            self._read_back(word, now)
        elif word & 0x30 == 0:
            self.counters[channel].latch(now)
        else:
            self.counters[channel].control(word)
            if channel == 0:
                self._interrupt(self.counters[0].out(now))

    def _read_back(self, word: int, now: int) -> None:
        """Latches count (bit 5 low) and status (bit 4 low) of each channel of bits 1 to 3."""
        for channel, counter in enumerate(self.counters):
            if word >> channel + 1 & 1:
                if not word & 0x20:
                    counter.latch(now)
                if not word & 0x10:
                    counter.latch_status(now)
