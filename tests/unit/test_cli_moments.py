"""Moments as people write them, and times as they read them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from vmm_client.cli.moments import age, clock_time, exact_time, parse_moment, span


@pytest.fixture(autouse=True)
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def now() -> datetime:
    """A Sunday."""
    return datetime(2026, 11, 22, 15, 30, 20).astimezone()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", "2026-11-22 15:30:20"),
        ("today", "2026-11-22 00:00:00"),
        ("Yesterday", "2026-11-21 00:00:00"),
        ("yesterday 9:30", "2026-11-21 09:30:00"),
        ("last tuesday", "2026-11-17 00:00:00"),
        ("Last  Tuesday 14:00:05", "2026-11-17 14:00:05"),
        ("tue", "2026-11-17 00:00:00"),
        ("sunday", "2026-11-15 00:00:00"),
        ("saturday", "2026-11-21 00:00:00"),
        ("14:00", "2026-11-22 14:00:00"),
        ("90s ago", "2026-11-22 15:28:50"),
        ("5 min ago", "2026-11-22 15:25:20"),
        ("1 minute ago", "2026-11-22 15:29:20"),
        ("3h ago", "2026-11-22 12:30:20"),
        ("2 days ago", "2026-11-20 15:30:20"),
        ("1w ago", "2026-11-15 15:30:20"),
        ("2026-11-17", "2026-11-17 00:00:00"),
        ("2026-11-17 14:00", "2026-11-17 14:00:00"),
        ("2026-11-17T14:00:00Z", "2026-11-17 15:00:00"),
        ("2026-07-01 12:00", "2026-07-01 12:00:00"),
    ],
)
def test_moments_are_local_time(text: str, expected: str) -> None:
    moment = parse_moment(text, now())
    assert moment.tzinfo is not None
    assert moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") == expected


def test_summer_time_counts() -> None:
    moment = parse_moment("2026-07-01 12:00", now())
    assert moment == datetime(2026, 7, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ago",
        "3 ago",
        "3h",
        "-3h ago",
        "999999999 weeks ago",
        "next tuesday",
        "t",
        "25:00",
        "tuesday 12:60",
        "last 14:00",
        "2026-02-30",
        "tomorrow",
        "0x10",
        "yesterday 1:2",
    ],
)
def test_what_is_no_moment_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="write it as in `2026-11-17 14:00`"):
        parse_moment(text, now())


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-5, "0 s"),
        (0.9, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "119 min"),
        (7200, "2 h"),
        (172_799, "47 h"),
        (172_800, "2 d"),
    ],
)
def test_spans_are_told_in_the_unit_that_fits(seconds: float, expected: str) -> None:
    assert span(timedelta(seconds=seconds)) == expected


def test_times_are_local_for_people_and_exact_for_programs() -> None:
    moment = Timestamp(seconds=1_795_000_000, nanos=123_456_789)
    assert clock_time(moment) == "2026-11-18 12:06:40"
    assert exact_time(moment) == "2026-11-18T11:06:40.123456789Z"
    assert age(moment, datetime.fromtimestamp(1_795_000_600, UTC)) == "9 min"
