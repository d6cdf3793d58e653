"""The 16550A UART: National Semiconductor PC16550D data sheet (1995), sections 8.0 to 8.6.

The wire is perfect and infinitely fast: the transmitter is always empty, there are no framing or
parity errors and no break, and a character time-out is due as soon as the FIFO holds less than its
trigger level. An overrun happens in loopback only: the outside waits until there is room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import Final

RECEIVE_LIMIT: Final = 64 * 1024
FIFO_DEPTH: Final = 16

DLAB: Final = 0x80
LOOPBACK: Final = 0x10
OUT2: Final = 0x08

IER_RECEIVED: Final = 0x01
IER_TRANSMITTER: Final = 0x02
IER_LINE: Final = 0x04
IER_MODEM: Final = 0x08

IIR_NONE: Final = 0x01
IIR_MODEM: Final = 0x00
IIR_TRANSMITTER: Final = 0x02
IIR_RECEIVED: Final = 0x04
IIR_LINE: Final = 0x06
IIR_TIMEOUT: Final = 0x0C
IIR_FIFOS: Final = 0xC0

LSR_DATA: Final = 0x01
LSR_OVERRUN: Final = 0x02
LSR_TRANSMITTER_EMPTY: Final = 0x60

# CTS, DSR and DCD: somebody listens at the other end, always.
CONNECTED: Final = 0xB0

_TRIGGERS: Final = (1, 4, 8, 14)
_BYTES: Final = tuple(bytes([value]) for value in range(256))


class Uart16550:
    """`transmit` gets what the guest sends, a byte at a time; `interrupt` the level of the line;
    `wake` (from the thread that calls `receive`) says that `poll` has something to do."""

    __slots__ = (
        "_divisor",
        "_enabled",
        "_fifo",
        "_fifos_on",
        "_incoming",
        "_interrupt",
        "_line_control",
        "_modem_control",
        "_modem_delta",
        "_modem_inputs",
        "_overrun",
        "_readers",
        "_receiving",
        "_scratch",
        "_transmit",
        "_transmitter_pending",
        "_trigger",
        "_wake",
        "_writers",
    )

    def __init__(
        self,
        transmit: Callable[[bytes], None],
        interrupt: Callable[[int], None],
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._transmit = transmit
        self._interrupt = interrupt
        self._wake = wake
        self._incoming: deque[int] = deque()
        self._receiving = Lock()
        self._fifo: deque[int] = deque()
        self._fifos_on = False
        self._trigger = 1
        self._divisor = 1
        self._enabled = 0
        self._line_control = 0
        self._modem_control = 0
        self._modem_inputs = CONNECTED
        self._modem_delta = 0
        self._overrun = False
        self._scratch = 0
        self._transmitter_pending = False
        self._readers = (
            self._read_data_or_divisor,
            self._read_enable_or_divisor,
            self._read_identification,
            self._read_line_control,
            self._read_modem_control,
            self._read_line_status,
            self._read_modem_status,
            self._read_scratch,
        )
        self._writers = (
            self._write_data_or_divisor,
            self._write_enable_or_divisor,
            self._write_fifo_control,
            self._write_line_control,
            self._write_modem_control,
            self._write_nothing,
            self._write_nothing,
            self._write_scratch,
        )

    def receive(self, data: bytes) -> int:
        """Queues input for the guest, from any thread. Returns how many bytes were taken: at most
        `RECEIVE_LIMIT` wait here, and the caller keeps the rest."""
        with self._receiving:
            taken = data[: RECEIVE_LIMIT - len(self._incoming)]
            self._incoming.extend(taken)
        if taken:
            self._wake()
        return len(taken)

    def poll(self) -> None:
        """Moves queued input into the FIFO as far as there is room, and tells the guest."""
        if self._incoming and not self._modem_control & LOOPBACK:
            depth = FIFO_DEPTH if self._fifos_on else 1
            while self._incoming and len(self._fifo) < depth:
                self._fifo.append(self._incoming.popleft())
            self._update()

    def read(self, offset: int, _size: int) -> int:
        return self._readers[offset]()

    def write(self, offset: int, _size: int, value: int) -> None:
        self._writers[offset](value)

    def _read_data_or_divisor(self) -> int:
        return self._divisor & 0xFF if self._line_control & DLAB else self._read_data()

    def _read_enable_or_divisor(self) -> int:
        return self._divisor >> 8 if self._line_control & DLAB else self._enabled

    def _read_line_control(self) -> int:
        return self._line_control

    def _read_modem_control(self) -> int:
        return self._modem_control

    def _read_scratch(self) -> int:
        return self._scratch

    def _write_data_or_divisor(self, value: int) -> None:
        if self._line_control & DLAB:
            self._divisor = self._divisor & 0xFF00 | value
        else:
            self._write_data(value)

    def _write_enable_or_divisor(self, value: int) -> None:
        if self._line_control & DLAB:
            self._divisor = self._divisor & 0xFF | value << 8
        else:
            self._write_enable(value)

    def _write_line_control(self, value: int) -> None:
        self._line_control = value

    def _write_scratch(self, value: int) -> None:
        self._scratch = value

    def _write_nothing(self, _value: int) -> None:
        """The status registers are read-only; writing them is for factory tests (8.3, 8.7)."""

    def _read_line_status(self) -> int:
        if self._incoming:
            self.poll()
        status = LSR_TRANSMITTER_EMPTY
        if self._fifo:
            status |= LSR_DATA
        if self._overrun:
            status |= LSR_OVERRUN
            self._overrun = False
            self._update()
        return status

    def _read_data(self) -> int:
        if not self._fifo:
            return 0
        value = self._fifo.popleft()
        self.poll()
        self._update()
        return value

    def _read_identification(self) -> int:
        """IIR. Reading it while it shows THRE is what takes that interrupt back (8.5)."""
        source = self._source()
        if source == IIR_TRANSMITTER:
            self._transmitter_pending = False
            self._update()
        return source | IIR_FIFOS if self._fifos_on else source

    def _read_modem_status(self) -> int:
        status = self._modem_inputs | self._modem_delta
        self._modem_delta = 0
        self._update()
        return status

    def _write_data(self, value: int) -> None:
        if self._modem_control & LOOPBACK:
            self._loop_back(value)
        else:
            self._transmit(_BYTES[value])
        if self._transmitter_pending and self._enabled & IER_TRANSMITTER:
            # Writing takes the interrupt back, and the empty transmitter raises it anew (8.5): an edge.
            self._transmitter_pending = False
            self._update()
        self._transmitter_pending = True
        if self._enabled:
            self._update()

    def _loop_back(self, value: int) -> None:
        """With the FIFO full the newest character is lost, without FIFOs the older one (8.3)."""
        if not self._fifos_on:
            self._overrun |= bool(self._fifo)
            self._fifo.clear()
            self._fifo.append(value)
        elif len(self._fifo) < FIFO_DEPTH:
            self._fifo.append(value)
        else:
            self._overrun = True

    def _write_enable(self, value: int) -> None:
        # Enabling the THRE interrupt raises it at once: the transmitter is empty.
        if value & ~self._enabled & IER_TRANSMITTER:
            self._transmitter_pending = True
        self._enabled = value & 0x0F
        self._update()

    def _write_fifo_control(self, value: int) -> None:
        """FCR. Turning the FIFOs on or off empties them; the other bits count only while bit 0 is
        written as one (8.4)."""
        on = bool(value & 1)
        if on != self._fifos_on or (on and value & 2):
            self._fifo.clear()
        self._fifos_on = on
        self._trigger = _TRIGGERS[value >> 6] if on else 1
        self.poll()
        self._update()

    def _write_modem_control(self, value: int) -> None:
        """MCR. In loopback DTR, RTS, OUT1 and OUT2 feed DSR, CTS, RI and DCD (8.6)."""
        self._modem_control = value & 0x1F
        inputs = CONNECTED
        if value & LOOPBACK:
            inputs = (value & 1) << 5 | (value & 2) << 3 | (value & 4) << 4 | (value & 8) << 4
        changed = (self._modem_inputs ^ inputs) >> 4
        ring_ended = self._modem_inputs & ~inputs & 0x40
        self._modem_delta |= changed & 0x0B | (0x04 if ring_ended else 0)
        self._modem_inputs = inputs
        self.poll()
        self._update()

    def _source(self) -> int:
        """IIR bits 0-3: the pending interrupt of the highest priority."""
        enabled = self._enabled
        if enabled & IER_LINE and self._overrun:
            return IIR_LINE
        if enabled & IER_RECEIVED and self._fifo:
            return IIR_RECEIVED if len(self._fifo) >= self._trigger else IIR_TIMEOUT
        if enabled & IER_TRANSMITTER and self._transmitter_pending:
            return IIR_TRANSMITTER
        if enabled & IER_MODEM and self._modem_delta:
            return IIR_MODEM
        return IIR_NONE

    def _update(self) -> None:
        # On a PC, OUT2 gates the interrupt; loopback holds that pin inactive.
        gated = self._modem_control & (OUT2 | LOOPBACK) == OUT2
        self._interrupt(int(gated and self._source() != IIR_NONE))
