"""The real-time clock against the MC146818 data sheet."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_client.devices.rtc_cmos import SECOND, RtcCmos

SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY = 0, 2, 4, 6, 7, 8, 9, 0x32
A, B, C, D = 0x0A, 0x0B, 0x0C, 0x0D
SET, BINARY, HOURS_24 = 0x80, 0x04, 0x02


class Clock(RtcCmos):
    """With a wall clock that the test sets."""

    __slots__ = ("wall",)

    def __init__(self, time: datetime) -> None:
        self.wall = int(time.timestamp()) * SECOND
        super().__init__(lambda: self.wall)

    def get(self, index: int) -> int:
        self.write(0, 1, index)
        return self.read(1, 1)

    def put(self, index: int, value: int) -> None:
        self.write(0, 1, index)
        self.write(1, 1, value)

    def time(self) -> list[int]:
        return [self.get(index) for index in (CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS)]


@pytest.fixture
def clock() -> Clock:
    return Clock(datetime(2026, 11, 22, 19, 59, 58, tzinfo=UTC))


def test_time_of_day_in_bcd(clock: Clock) -> None:
    assert clock.time() == [0x20, 0x26, 0x11, 0x22, 0x19, 0x59, 0x58]
    assert clock.get(WEEKDAY) == 1  # a Sunday
    clock.wall += 2 * SECOND
    assert clock.time()[4:] == [0x20, 0x00, 0x00]


def test_time_of_day_in_binary(clock: Clock) -> None:
    clock.put(B, BINARY | HOURS_24)
    assert clock.time() == [20, 26, 11, 22, 19, 59, 58]


@pytest.mark.parametrize(
    ("hour", "shown"), [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)]
)
def test_twelve_hours(hour: int, shown: int) -> None:
    clock = Clock(datetime(2026, 1, 1, hour, tzinfo=UTC))
    clock.put(B, 0)
    assert clock.get(HOURS) == shown
    clock.put(HOURS, shown)
    clock.put(B, HOURS_24)
    assert clock.get(HOURS) == hour // 10 << 4 | hour % 10


def test_the_index_ignores_the_nmi_mask(clock: Clock) -> None:
    assert clock.get(0x80 | MINUTES) == 0x59
    assert clock.read(0, 1) == 0xFF


@pytest.mark.parametrize(("ns", "updating"), [(0, 0), (997_771_999, 0), (997_772_000, 0x80)])
def test_update_in_progress_before_each_second(clock: Clock, ns: int, updating: int) -> None:
    clock.wall += ns
    assert clock.get(A) == 0x26 | updating


def test_setting_the_time_moves_it_and_goes_on(clock: Clock) -> None:
    clock.put(B, SET | HOURS_24)
    for index, value in ((CENTURY, 0x19), (YEAR, 0x99), (MONTH, 0x12), (DAY, 0x31)):
        clock.put(index, value)
    for index, value in ((HOURS, 0x23), (MINUTES, 0x59), (SECONDS, 0x59)):
        clock.put(index, value)
    clock.wall += 100 * SECOND
    assert clock.time() == [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59]
    clock.put(B, HOURS_24)
    clock.wall += SECOND
    assert clock.time() == [0x20, 0, 1, 1, 0, 0, 0]


def test_set_holds_update_in_progress_low(clock: Clock) -> None:
    clock.wall += SECOND - 1
    clock.put(B, SET | HOURS_24)
    assert clock.get(A) == 0x26


def test_a_single_register_can_be_set_while_it_runs(clock: Clock) -> None:
    clock.put(MINUTES, 0x07)
    assert clock.time() == [0x20, 0x26, 0x11, 0x22, 0x19, 0x07, 0x58]


@pytest.mark.parametrize(("index", "value"), [(MONTH, 0x13), (DAY, 0x31), (HOURS, 0x24)])
def test_what_is_no_date_changes_nothing(clock: Clock, index: int, value: int) -> None:
    before = clock.time()
    clock.put(index, value)
    assert clock.time() == before


@given(index=st.integers(0, 255), value=st.integers(0, 255), status=st.integers(0, 255))
def test_no_write_breaks_the_clock(index: int, value: int, status: int) -> None:
    clock = Clock(datetime(2026, 1, 1, tzinfo=UTC))
    clock.put(B, status)
    clock.put(index, value)
    clock.put(B, 0)
    assert all(0 <= clock.get(register) <= 0xFF for register in range(128))


def test_the_other_registers_are_memory(clock: Clock) -> None:
    clock.put(0x7F, 0xA5)
    clock.put(0x01, 0xC0)
    assert (clock.get(0x7F), clock.get(0x01)) == (0xA5, 0xC0)


def test_status_c_and_d_are_read_only(clock: Clock) -> None:
    clock.put(C, 0xFF)
    clock.put(D, 0x00)
    assert (clock.get(C), clock.get(D)) == (0x00, 0x80)


def test_interrupt_enables_are_kept_and_raise_nothing(clock: Clock) -> None:
    clock.put(B, 0x70 | HOURS_24)
    clock.wall += 5 * SECOND
    assert (clock.get(B), clock.get(C)) == (0x72, 0x00)


def test_the_clock_stops_where_time_ends(clock: Clock) -> None:
    clock.put(B, SET | HOURS_24)
    last = {CENTURY: 0x99, YEAR: 0x99, MONTH: 0x12, DAY: 0x31, HOURS: 0x23, MINUTES: 0x59}
    for index, value in {**last, SECONDS: 0x58}.items():
        clock.put(index, value)
    clock.put(B, HOURS_24)
    for second in (0x58, 0x59, 0x59):
        assert clock.time() == [*last.values(), second]
        clock.wall += SECOND
    clock.put(YEAR, 0x26)
    assert clock.time()[:2] == [0x99, 0x26]
