"""The board: that its devices sit where a PC has them, and are wired as a PC's are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_client.boards.pc import PC, Ending, ram_pieces
from vmm_client.devices.pit8254 import nanoseconds


class Machine:
    """A PC on clocks that stand still until a test moves them."""

    def __init__(self) -> None:
        self.now = 0
        self.output = b""
        self.wakes = 0
        self.pc = PC(self._console, wake=self._wake, clock=lambda: self.now, wall=lambda: 0)
        for port, value in (
            *((0x20, 0x11), (0x21, 0x30), (0x21, 0x04), (0x21, 0x01)),
            *((0xA0, 0x11), (0xA1, 0x38), (0xA1, 0x02), (0xA1, 0x01)),
        ):
            self.pc.port_write(port, 1, value)

    def _console(self, data: bytes) -> None:
        self.output += data

    def _wake(self) -> None:
        self.wakes += 1

    def out(self, *writes: tuple[int, int]) -> None:
        for port, value in writes:
            self.pc.port_write(port, 1, value)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_what_goes_to_com1_is_the_console(machine: Machine) -> None:
    machine.out((0x3F8, ord("o")), (0x3F8, ord("k")))
    assert machine.output == b"ok"


def test_the_timer_is_irq_0(machine: Machine) -> None:
    pc = machine.pc
    assert pc.next_deadline() is None
    machine.out((0x43, 0x34), (0x40, 0xE8), (0x40, 0x03))
    deadline = pc.next_deadline()
    assert deadline == nanoseconds(1000)
    pc.advance(deadline - 1)
    assert pc.pending() is None
    pc.advance(deadline)
    assert pc.pending() == 0x30
    assert pc.acknowledge() == 0x30
    assert pc.pending() is None


def test_input_wakes_and_interrupts_by_irq_4(machine: Machine) -> None:
    pc = machine.pc
    machine.out((0x3F9, 0x01), (0x3FC, 0x08))
    assert pc.receive(b"x") == 1
    assert machine.wakes == 1
    assert pc.pending() is None
    pc.advance(0)
    assert pc.acknowledge() == 0x34
    assert pc.port_read(0x3F8, 1) == ord("x")


@pytest.mark.parametrize("writes", [((0x64, 0xFE),), ((0x92, 0x01),), ((0xCF9, 0x02), (0xCF9, 6))])
def test_each_way_to_reset(machine: Machine, writes: tuple[tuple[int, int], ...]) -> None:
    assert machine.pc.ended is None
    machine.out(*writes)
    assert machine.pc.ended is Ending.RESET


@pytest.mark.parametrize("size", [2, 4])
def test_a_guest_that_looks_for_pci_is_not_reset(machine: Machine, size: int) -> None:
    address = 0x8000_0600 % (1 << 8 * size)
    machine.pc.port_write(0xCF8, size, address)
    assert machine.pc.ended is None
    assert machine.pc.port_read(0xCF8, size) == (1 << 8 * size) - 1


def test_power_off_by_a_16_bit_write_to_pm1_control(machine: Machine) -> None:
    machine.pc.port_write(0x604, 2, 0x2000 | 5 << 10)
    assert machine.pc.ended is Ending.POWER_OFF


def test_the_first_ending_counts(machine: Machine) -> None:
    machine.pc.halt(interrupts_enabled=False)
    machine.out((0x64, 0xFE))
    assert machine.pc.ended is Ending.HALTED


def test_a_halt_with_interrupts_on_is_no_ending(machine: Machine) -> None:
    machine.pc.halt(interrupts_enabled=True)
    assert machine.pc.ended is None


def test_its_user_may_leave(machine: Machine) -> None:
    machine.pc.leave()
    assert machine.pc.ended is Ending.LEFT


def test_ports_of_the_other_devices(machine: Machine) -> None:
    pc = machine.pc
    machine.out((0x70, 0x0D), (0x4D1, 0xFF))
    assert pc.port_read(0x71, 1) == 0x80
    assert pc.port_read(0x4D1, 1) == 0xDE
    assert pc.port_read(0x604, 2) == 1
    machine.now = 1_000_000_000
    assert pc.port_read(0x608, 4) == 3_579_545
    assert pc.port_read(0x61, 1) & 0x01 == 0


def test_memory_that_nobody_claims_floats(machine: Machine) -> None:
    machine.pc.mmio_write(0xFEE0_0000, 4, 1)
    assert machine.pc.mmio_read(0xFEE0_0000, 4) == 0xFFFF_FFFF


def test_ram_makes_room_for_the_devices() -> None:
    hole = 0xFEC0_0000
    assert ram_pieces(hole) == [(0, 0, hole)]
    assert ram_pieces(hole + 4096) == [(0, 0, hole), (4 << 30, hole, 4096)]


DEVICE_PORTS = (
    *(0x20, 0x21, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x92, 0xA0, 0xA1),
    *(*range(0x3F8, 0x400), 0x4D0, 0x4D1, *range(0x600, 0x60C), 0xCF8, 0xCF9),
)
ACCESS = st.tuples(
    st.sampled_from(DEVICE_PORTS) | st.integers(0, 0xFFFF),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 0xFFFF_FFFF),
    st.integers(0, 1 << 40),
)


@given(st.lists(ACCESS, max_size=60))
def test_no_guest_can_make_the_board_fail(accesses: list[tuple[int, int, int, int]]) -> None:
    machine = Machine()
    pc = machine.pc
    for port, size, value, pause in accesses:
        limit = 1 << 8 * size
        pc.port_write(port, size, value % limit)
        assert 0 <= pc.port_read(port, size) < limit
        machine.now += pause
        pc.receive(b"input")
        pc.advance(machine.now)
        deadline = pc.next_deadline()
        assert deadline is None or deadline > machine.now
        vector = pc.pending()
        if vector is not None:
            assert 0 <= vector <= 0xFF
            assert pc.acknowledge() == vector
