"""Moments and spans of time as people write and read them; in the local time zone where none is named.

A moment is one of

- `now`, `today`, `yesterday`, or a day of the week, which is the last one before today: `tuesday`,
  `last tuesday`, `tue`. A day is its beginning; a time may follow: `yesterday 14:00`
- a time alone, which is today's: `14:00`, `14:00:30`
- so long ago: `90s ago`, `3h ago`, `2 days ago`; units are s, min, h, d and w, also as words
- ISO 8601: `2026-11-17`, `2026-11-17 14:00`, `2026-11-17T14:00:00Z`
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Final

from cyclopts import Parameter, Token
from google.protobuf.timestamp_pb2 import Timestamp

DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
UNITS: Final = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
AGO: Final = re.compile(
    r"(\d{1,9}) ?(?:(s)(?:ec(?:ond)?s?)?|(min)(?:ute)?s?|(h)(?:ours?)?|(d)(?:ays?)?|(w)(?:eeks?)?) ago"
)
CLOCK: Final = r"\d{1,2}:\d{2}(?::\d{2})?"
DAY_AND_CLOCK: Final = re.compile(rf"(?:last )?([a-z]+)(?: ({CLOCK}))?|({CLOCK})")


def parse_moment(text: str, now: datetime | None = None) -> datetime:
    """The moment, with a time zone. Raises ValueError for what is none."""
    now = now or datetime.now().astimezone()
    words = " ".join(text.lower().split())
    try:
        return _ago(words, now) or _of_a_day(words, now) or _iso(text.strip())
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is no moment: write it as in `2026-11-17 14:00`, `last tuesday`, "
            "`yesterday 9:30` or `3h ago`"
        ) from None


def _ago(words: str, now: datetime) -> datetime | None:
    match = AGO.fullmatch(words)
    if match is None:
        return now if words == "now" else None
    unit = next(filter(None, match.groups()[1:]))
    return now - timedelta(seconds=int(match[1]) * UNITS[unit])


def _of_a_day(words: str, now: datetime) -> datetime | None:
    match = DAY_AND_CLOCK.fullmatch(words)
    day = _day(match[1] or "today", now.date()) if match else None
    if match is None or day is None:
        return None
    clock = match[2] or match[3] or "00:00"
    hour, _, rest = clock.partition(":")
    return datetime.combine(day, time.fromisoformat(f"{hour:0>2}:{rest}")).astimezone()


def _day(word: str, today: date) -> date | None:
    if word in {"today", "yesterday"}:
        return today - timedelta(days=int(word == "yesterday"))
    found = [day for day, name in enumerate(DAYS) if len(word) >= 3 and name.startswith(word)]
    return today - timedelta(days=(today.weekday() - found[0] - 1) % 7 + 1) if found else None


def _iso(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.astimezone()


def _convert(_type: type, tokens: Sequence[Token]) -> datetime:
    return parse_moment(tokens[0].value)


Moment = Annotated[datetime, Parameter(converter=_convert)]


def clock_time(moment: Timestamp) -> str:
    """Local time to the second, for people."""
    return moment.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def exact_time(moment: Timestamp) -> str:
    """RFC 3339 in UTC, for programs."""
    return moment.ToJsonString()


def age(moment: Timestamp, now: datetime | None = None) -> str:
    """How long ago that was, as in `2 min`."""
    return span((now or datetime.now(UTC)) - moment.ToDatetime(UTC))


def span(length: timedelta) -> str:
    """A length of time in the greatest unit of which it has two at least: `90 s`, `5 min`, `3 h`."""
    seconds = max(0, int(length.total_seconds()))
    for unit, of_it in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * of_it:
            return f"{seconds // of_it} {unit}"
    return f"{seconds} s"
