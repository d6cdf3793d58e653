"""The 16550A against its data sheet."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from vmm_client.devices.uart16550 import RECEIVE_LIMIT, Uart16550

DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)
FCR = IIR
RDA, THRE, LINE, MODEM = 1, 2, 4, 8
OUT2, LOOP = 0x08, 0x10


class Wired(Uart16550):
    """With its output, the level of its interrupt line and the number of wake-ups."""

    def __init__(self) -> None:
        self.sent = b""
        self.level = 0
        self.wakes = 0
        self.level_changed: Callable[[int], None] = lambda _: None
        super().__init__(self._send, self._set, self._count)

    def _send(self, data: bytes) -> None:
        self.sent += data

    def _set(self, level: int) -> None:
        if level != self.level:
            self.level = level
            self.level_changed(level)

    def _count(self) -> None:
        self.wakes += 1

    def get(self, register: int) -> int:
        return self.read(register, 1)

    def put(self, register: int, value: int) -> None:
        self.write(register, 1, value)

    def feed(self, data: bytes) -> None:
        assert self.receive(data) == len(data)
        self.poll()


@pytest.fixture
def uart() -> Wired:
    return Wired()


@pytest.fixture
def fifo(uart: Wired) -> Wired:
    """FIFOs on, trigger level 14, interrupts gated through."""
    uart.put(FCR, 0xC1)
    uart.put(MCR, OUT2)
    return uart


def test_after_reset(uart: Wired) -> None:
    assert [uart.get(register) for register in (IER, IIR, LCR, MCR, LSR)] == [0, 1, 0, 0, 0x60]
    assert uart.get(MSR) == 0xB0


def test_transmits_at_once(uart: Wired) -> None:
    for byte in b"hi\n":
        uart.put(DATA, byte)
        assert uart.get(LSR) == 0x60
    assert uart.sent == b"hi\n"


def test_divisor_latch_hides_data_and_enable(uart: Wired) -> None:
    uart.put(LCR, 0x83)
    uart.put(DATA, 0x0C)
    uart.put(IER, 0x01)
    assert (uart.get(DATA), uart.get(IER)) == (0x0C, 0x01)
    uart.put(LCR, 0x03)
    assert (uart.get(DATA), uart.get(IER), uart.get(LCR)) == (0, 0, 3)
    assert uart.sent == b""


def test_registers_keep_only_the_bits_they_have(uart: Wired) -> None:
    for register, kept in ((IER, 0x0F), (MCR, 0x1F), (SCR, 0xFF), (LCR, 0xFF)):
        uart.put(register, 0xFF)
        assert uart.get(register) == kept
        uart.put(register, 0)


def test_status_registers_cannot_be_written(uart: Wired) -> None:
    uart.put(LSR, 0xFF)
    uart.put(MSR, 0xFF)
    assert (uart.get(LSR), uart.get(MSR)) == (0x60, 0xB0)


def test_identification_shows_the_fifos(uart: Wired) -> None:
    uart.put(FCR, 1)
    assert uart.get(IIR) == 0xC1
    uart.put(FCR, 0)
    assert uart.get(IIR) == 0x01


def test_thre_interrupt_comes_with_its_enabling_and_goes_with_iir(fifo: Wired) -> None:
    fifo.put(IER, THRE)
    assert fifo.level == 1
    assert fifo.get(IIR) == 0xC2
    assert fifo.level == 0
    assert fifo.get(IIR) == 0xC1
    fifo.put(DATA, 0x41)
    assert fifo.level == 1
    fifo.put(IER, 0)
    assert fifo.level == 0


def test_writing_the_same_enable_again_raises_nothing(fifo: Wired) -> None:
    fifo.put(IER, THRE)
    fifo.get(IIR)
    fifo.put(IER, THRE)
    assert fifo.level == 0


def test_out2_gates_the_interrupt(uart: Wired) -> None:
    uart.put(IER, THRE)
    assert uart.level == 0
    uart.put(MCR, OUT2)
    assert uart.level == 1
    uart.put(MCR, OUT2 | LOOP)
    assert uart.level == 0


def test_received_data_at_the_trigger_level_and_timeout_below(fifo: Wired) -> None:
    fifo.put(IER, RDA)
    fifo.feed(b"a" * 13)
    assert (fifo.level, fifo.get(IIR)) == (1, 0xCC)
    fifo.feed(b"b")
    assert fifo.get(IIR) == 0xC4
    assert [fifo.get(DATA) for _ in range(14)] == list(b"a" * 13 + b"b")
    assert (fifo.level, fifo.get(IIR), fifo.get(LSR)) == (0, 0xC1, 0x60)


@pytest.mark.parametrize(("bits", "level"), [(0, 1), (1, 4), (2, 8), (3, 14)])
def test_trigger_levels(uart: Wired, bits: int, level: int) -> None:
    uart.put(FCR, bits << 6 | 1)
    uart.put(IER, RDA)
    uart.feed(bytes(level - 1))
    assert uart.get(IIR) == (0xCC if level > 1 else 0xC1)
    uart.feed(b"x")
    assert uart.get(IIR) == 0xC4


def test_without_fifos_one_character_at_a_time(uart: Wired) -> None:
    uart.put(IER, RDA)
    uart.feed(b"abc")
    assert (uart.get(IIR), uart.get(LSR)) == (0x04, 0x61)
    assert bytes(uart.get(DATA) for _ in range(3)) == b"abc"
    assert uart.get(LSR) == 0x60


def test_more_input_than_the_fifo_waits_and_none_is_lost(fifo: Wired) -> None:
    text = bytes(range(256)) * 4
    fifo.feed(text)
    read = bytearray()
    while fifo.get(LSR) & 1:
        read.append(fifo.get(DATA))
    assert bytes(read) == text


def test_line_status_finds_input_that_nobody_polled(fifo: Wired) -> None:
    fifo.receive(b"q")
    assert fifo.get(LSR) == 0x61


def test_input_is_bounded_and_the_rest_is_the_callers(fifo: Wired) -> None:
    assert fifo.receive(bytes(RECEIVE_LIMIT - 1)) == RECEIVE_LIMIT - 1
    assert fifo.receive(b"abc") == 1
    assert fifo.receive(b"d") == 0
    assert fifo.wakes == 2
    fifo.poll()
    assert fifo.receive(bytes(17)) == 16


def test_input_from_another_thread(fifo: Wired) -> None:
    text = b"0123456789" * 500
    sender = threading.Thread(target=fifo.receive, args=(text,))
    sender.start()
    read = bytearray()
    while len(read) < len(text):
        if fifo.get(LSR) & 1:
            read.append(fifo.get(DATA))
    sender.join()
    assert bytes(read) == text


def test_priorities_of_the_sources(fifo: Wired) -> None:
    fifo.put(MCR, LOOP)
    for value in range(17):
        fifo.put(DATA, value)
    fifo.put(IER, RDA | THRE | LINE | MODEM)
    assert fifo.get(IIR) == 0xC6
    assert fifo.get(LSR) == 0x63
    assert fifo.get(IIR) == 0xC4
    fifo.put(FCR, 0xC3)
    assert fifo.get(IIR) == 0xC2
    assert fifo.get(IIR) == 0xC0
    assert fifo.get(MSR) & 0x0F != 0
    assert fifo.get(IIR) == 0xC1


def test_clearing_and_switching_the_fifos_drops_what_they_hold(fifo: Wired) -> None:
    for control in (0xC3, 0x00, 0xC1):
        fifo.feed(b"x")
        assert fifo.get(LSR) & 1
        fifo.put(FCR, control)
        assert not fifo.get(LSR) & 1


def test_loopback_returns_the_data_and_sends_nothing(fifo: Wired) -> None:
    fifo.put(MCR, LOOP)
    fifo.put(DATA, 0x5A)
    assert (fifo.get(LSR), fifo.get(DATA), fifo.sent) == (0x61, 0x5A, b"")


def test_loopback_keeps_the_outside_waiting(fifo: Wired) -> None:
    fifo.put(MCR, LOOP)
    fifo.feed(b"z")
    assert fifo.get(LSR) == 0x60
    fifo.put(MCR, 0)
    assert (fifo.get(LSR), fifo.get(DATA)) == (0x61, ord("z"))


def test_overrun_in_loopback_without_fifos_keeps_the_newer(uart: Wired) -> None:
    uart.put(MCR, LOOP)
    uart.put(DATA, 1)
    uart.put(DATA, 2)
    assert uart.get(LSR) == 0x63
    assert uart.get(LSR) == 0x61
    assert uart.get(DATA) == 2


@pytest.mark.parametrize(("output", "shown"), [(1, 0x20), (2, 0x10), (4, 0x40), (8, 0x80)])
def test_loopback_wires_the_modem_lines(uart: Wired, output: int, shown: int) -> None:
    uart.put(MCR, LOOP | output)
    assert uart.get(MSR) & 0xF0 == shown


def test_modem_deltas_and_their_interrupt(uart: Wired) -> None:
    uart.put(MCR, LOOP | 0x0B)
    assert uart.get(MSR) == 0xB0
    uart.put(IER, MODEM)
    uart.put(MCR, LOOP | 0x0F)
    assert uart.get(MSR) == 0xF0  # a rising ring indicator is no delta
    uart.put(MCR, LOOP | 0x0A)
    assert uart.get(IIR) == 0x00
    assert uart.get(MSR) == 0x96
    assert uart.get(MSR) == 0x90
    assert uart.get(IIR) == 0x01


def test_each_character_sent_raises_the_transmitter_interrupt_anew(uart: Wired) -> None:
    uart.put(MCR, OUT2)
    uart.put(IER, THRE)
    levels: list[int] = []
    uart.level_changed = levels.append
    uart.put(DATA, ord("x"))
    assert levels == [0, 1]
