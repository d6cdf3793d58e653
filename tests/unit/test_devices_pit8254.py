"""The 8254 against its data sheet, on a clock that only the tests move."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_client.devices.pit8254 import FREQUENCY, SECOND, Counter, Pit8254, nanoseconds, pulses


class Board:
    """A PIT whose clock is set in its own pulses, and what its interrupt line did."""

    def __init__(self) -> None:
        self.ns = 0
        self.levels: list[int] = []
        self.pit = Pit8254(lambda: self.ns, self.levels.append)
        assert self.levels == [1]
        self.levels.clear()

    def at(self, pulse: int) -> Board:
        self.ns = nanoseconds(pulse)
        return self

    def program(self, channel: int, mode: int, count: int, *, bcd: bool = False) -> None:
        self.pit.write(3, 1, channel << 6 | 0x30 | mode << 1 | bcd)
        self.write_count(channel, count)

    def write_count(self, channel: int, count: int) -> None:
        self.pit.write(channel, 1, count & 0xFF)
        self.pit.write(channel, 1, count >> 8)

    def count(self, channel: int) -> int:
        """The running count, by a latch command."""
        self.pit.write(3, 1, channel << 6)
        return self.pit.read(channel, 1) | self.pit.read(channel, 1) << 8

    def status(self, channel: int) -> int:
        self.pit.write(3, 1, 0xE0 | 2 << channel)
        return self.pit.read(channel, 1)

    def out(self, channel: int) -> int:
        return self.status(channel) >> 7

    def tick(self) -> int:
        """How many rising edges `tick` makes now."""
        self.levels.clear()
        self.pit.tick(self.ns)
        return self.levels.count(1)

    def outs(self, channel: int, *at: int) -> list[int]:
        return [self.at(pulse).out(channel) for pulse in at]


@pytest.fixture
def board() -> Board:
    return Board()


@given(st.integers(0, 1 << 50))
def test_nanoseconds_is_the_first_at_which_the_pulse_has_come(pulse: int) -> None:
    first = nanoseconds(pulse)
    assert pulses(first) == pulse
    assert first == 0 or pulses(first - 1) == pulse - 1


def test_mode_0_interrupts_once_on_terminal_count(board: Board) -> None:
    board.program(0, 0, 1000)
    assert board.outs(0, 0, 999, 1000, 70000) == [0, 0, 1, 1]
    assert board.at(1001).count(0) == 0xFFFF


def test_mode_0_first_byte_of_a_new_count_stops_it(board: Board) -> None:
    board.program(0, 0, 100)
    board.at(100).pit.write(0, 1, 50)
    assert board.out(0) == 0
    assert board.at(500).out(0) == 0
    board.pit.write(0, 1, 0)
    assert board.outs(0, 549, 550) == [0, 1]


def test_mode_0_is_held_by_a_low_gate(board: Board) -> None:
    board.pit.set_gate2(level=True)
    board.program(2, 0, 100)
    board.at(40).pit.set_gate2(level=False)
    assert board.at(1000).count(2) == 60
    board.pit.set_gate2(level=True)
    assert board.outs(2, 1059, 1060) == [0, 1]


def test_mode_0_with_a_low_gate_starts_with_the_gate(board: Board) -> None:
    board.program(2, 0, 100)
    assert board.at(500).count(2) == 100
    board.pit.set_gate2(level=True)
    assert board.outs(2, 599, 600) == [0, 1]


def test_mode_1_is_a_retriggerable_one_shot(board: Board) -> None:
    board.program(2, 1, 100)
    assert board.outs(2, 0, 500) == [1, 1]
    board.pit.set_gate2(level=True)
    assert board.outs(2, 500, 599, 600) == [0, 0, 1]
    board.at(700).pit.set_gate2(level=False)
    board.pit.set_gate2(level=True)
    board.at(750).pit.set_gate2(level=False)
    board.pit.set_gate2(level=True)
    assert board.outs(2, 849, 850) == [0, 1]


def test_mode_1_takes_a_new_count_with_the_next_trigger(board: Board) -> None:
    board.program(2, 1, 100)
    board.pit.set_gate2(level=True)
    board.at(10).write_count(2, 30)
    assert board.outs(2, 99, 100) == [0, 1]
    board.at(200).pit.set_gate2(level=False)
    board.pit.set_gate2(level=True)
    assert board.outs(2, 229, 230) == [0, 1]


def test_mode_2_is_low_for_the_last_pulse_of_each_period(board: Board) -> None:
    board.program(0, 2, 4)
    assert board.outs(0, *range(9)) == [1, 1, 1, 0, 1, 1, 1, 0, 1]
    assert [board.at(pulse).count(0) for pulse in range(5)] == [4, 3, 2, 1, 4]


def test_mode_2_finishes_its_period_before_a_new_count(board: Board) -> None:
    board.program(0, 2, 100)
    board.at(250).write_count(0, 10)
    assert board.status(0) & 0x40
    assert [board.at(pulse).count(0) for pulse in (251, 299, 300, 309, 310)] == [49, 1, 10, 1, 10]
    assert not board.status(0) & 0x40


def test_mode_2_gate_restarts_the_period(board: Board) -> None:
    board.pit.set_gate2(level=True)
    board.program(2, 2, 100)
    board.at(99).pit.set_gate2(level=False)
    assert board.out(2) == 1
    board.at(500).pit.set_gate2(level=True)
    assert [board.at(pulse).count(2) for pulse in (500, 599, 600)] == [100, 1, 100]


def test_mode_3_is_a_square_wave_that_counts_by_two(board: Board) -> None:
    board.program(0, 3, 6)
    assert board.outs(0, *range(7)) == [1, 1, 1, 0, 0, 0, 1]
    assert [board.at(pulse).count(0) for pulse in range(7)] == [6, 4, 2, 6, 4, 2, 6]


def test_mode_3_with_an_odd_count_is_high_one_pulse_longer(board: Board) -> None:
    board.program(0, 3, 5)
    assert board.outs(0, *range(6)) == [1, 1, 1, 0, 0, 1]
    assert [board.at(pulse).count(0) for pulse in range(6)] == [4, 2, 0, 4, 2, 4]


@pytest.mark.parametrize(("encoded", "mode"), [(6, 2), (7, 3)])
def test_modes_6_and_7_are_2_and_3(board: Board, encoded: int, mode: int) -> None:
    board.program(0, encoded, 100)
    assert board.status(0) >> 1 & 7 == mode


def test_mode_4_strobes_for_one_pulse(board: Board) -> None:
    board.program(0, 4, 10)
    assert board.outs(0, 0, 9, 10, 11, 65546) == [1, 1, 0, 1, 1]


def test_mode_5_strobes_after_a_trigger(board: Board) -> None:
    board.program(2, 5, 10)
    assert board.at(10).out(2) == 1
    board.at(100).pit.set_gate2(level=True)
    assert board.outs(2, 109, 110, 111) == [1, 0, 1]


@pytest.mark.parametrize(("bcd", "period"), [(False, 0x10000), (True, 10000)])
def test_count_zero_is_the_greatest(board: Board, bcd: bool, period: int) -> None:
    board.program(0, 2, 0, bcd=bcd)
    assert board.count(0) == 0
    assert board.at(1).count(0) == (0x9999 if bcd else 0xFFFF)
    assert board.outs(0, period - 1, period) == [0, 1]


def test_bcd_counts_decimally(board: Board) -> None:
    board.program(0, 2, 0x1000, bcd=True)
    assert [board.at(pulse).count(0) for pulse in (1, 999, 1000)] == [0x0999, 0x0001, 0x1000]


def test_access_to_one_byte(board: Board) -> None:
    board.pit.write(3, 1, 0x14)  # channel 0, least significant byte, mode 2
    board.pit.write(0, 1, 0x80)
    assert (board.pit.read(0, 1), board.at(1).pit.read(0, 1)) == (0x80, 0x7F)
    board.pit.write(3, 1, 0x24)  # most significant byte
    board.pit.write(0, 1, 0x12)
    assert (board.pit.read(0, 1), board.at(2).pit.read(0, 1)) == (0x12, 0x11)


def test_unlatched_reads_alternate(board: Board) -> None:
    board.program(0, 2, 0x1234)
    assert [board.pit.read(0, 1) for _ in range(4)] == [0x34, 0x12, 0x34, 0x12]


def test_a_latch_holds_until_it_is_read(board: Board) -> None:
    board.program(0, 2, 0x1234)
    board.pit.write(3, 1, 0x00)
    board.at(100).pit.write(3, 1, 0x00)
    assert [board.pit.read(0, 1), board.pit.read(0, 1)] == [0x34, 0x12]
    assert board.count(0) == 0x1234 - 100


def test_a_latch_starts_with_the_low_byte(board: Board) -> None:
    board.program(0, 2, 0x1234)
    assert board.pit.read(0, 1) == 0x34
    assert board.count(0) == 0x1234


def test_read_back_gives_status_before_count(board: Board) -> None:
    board.program(0, 2, 0x1234)
    board.program(2, 0, 0x5678)
    board.pit.write(3, 1, 0xC2 | 0x08)  # both, of channels 0 and 2
    assert [board.pit.read(0, 1) for _ in range(3)] == [0xB4, 0x34, 0x12]
    assert [board.pit.read(2, 1) for _ in range(3)] == [0x30, 0x78, 0x56]


def test_status_tells_that_the_count_is_not_loaded(board: Board) -> None:
    board.pit.write(3, 1, 0x34)
    assert board.status(0) == 0xF4
    board.write_count(0, 100)
    assert board.status(0) == 0xB4


def test_the_control_port_reads_as_an_empty_bus(board: Board) -> None:
    assert board.pit.read(3, 1) == 0xFF


def test_no_deadline_before_a_count(board: Board) -> None:
    assert board.pit.deadline() is None
    board.pit.write(3, 1, 0x34)
    assert board.pit.deadline() is None
    assert board.tick() == 0


def test_periodic_deadlines_and_ticks(board: Board) -> None:
    board.at(500).program(0, 2, 1000)
    for edge in (1500, 2500, 3500):
        assert board.pit.deadline() == nanoseconds(edge)
        assert board.at(edge - 1).tick() == 0
        assert board.at(edge).tick() == 1
        assert board.tick() == 0


def test_lost_ticks_are_one_tick_and_the_rhythm_stays(board: Board) -> None:
    board.program(0, 3, 1000)
    assert board.at(12_345).tick() == 1
    assert board.pit.deadline() == nanoseconds(13_000)


def test_the_line_stays_high_between_ticks(board: Board) -> None:
    board.program(0, 3, 1000)
    board.at(1000).tick()
    assert board.levels == [0, 1]
    board.at(1999).tick()
    assert board.levels == []


@pytest.mark.parametrize(("mode", "edge"), [(0, 100), (4, 101)])
def test_one_shots_tick_once(board: Board, mode: int, edge: int) -> None:
    board.program(0, mode, 100)
    assert board.pit.deadline() == nanoseconds(edge)
    assert board.at(edge).tick() == 1
    assert board.pit.deadline() is None
    assert board.at(1 << 20).tick() == 0


def test_a_control_word_of_mode_0_takes_the_interrupt_back(board: Board) -> None:
    board.program(0, 2, 100)
    board.at(100).tick()
    board.levels.clear()
    board.pit.write(3, 1, 0x30)
    assert board.levels == [0]


def test_reprogramming_does_not_lose_what_was_due(board: Board) -> None:
    board.program(0, 4, 100)
    board.levels.clear()
    board.at(200).program(0, 4, 100)
    assert board.levels == [0, 1, 1]  # the edge that was due, then OUT of the new mode
    assert board.pit.deadline() == nanoseconds(301)


def test_a_new_period_begins_with_the_edge_that_ends_the_old(board: Board) -> None:
    board.program(0, 2, 100)
    board.at(30).write_count(0, 1000)
    assert board.pit.deadline() == nanoseconds(100)
    board.at(100).tick()
    assert board.pit.deadline() == nanoseconds(1100)


def test_other_channels_do_not_interrupt(board: Board) -> None:
    board.program(1, 2, 18)
    board.program(2, 3, 100)
    assert board.pit.deadline() is None
    assert board.levels == []


def test_frequency_of_a_100_hz_timer(board: Board) -> None:
    board.program(0, 2, 11932)
    ticks = 0
    while (deadline := board.pit.deadline()) is not None and deadline <= SECOND:
        board.ns = deadline
        ticks += board.tick()
    assert ticks == FREQUENCY // 11932


@given(
    mode=st.sampled_from([0, 2, 3, 4]),
    count=st.integers(2, 0xFFFF),
    now=st.integers(0, 300_000),
)
def test_next_rise_is_the_first_rise_of_out(mode: int, count: int, now: int) -> None:
    counter = Counter()
    counter.control(0x30 | mode << 1)
    counter.write(count & 0xFF, 0)
    counter.write(count >> 8, 0)
    rise = counter.next_rise(now)
    if rise is None:
        assert mode in (0, 4)
        assert counter.out(now) == counter.out(now + 200_000) == 1
    else:
        assert rise > now
        assert (counter.out(rise - 1), counter.out(rise)) == (0, 1)
