"""What the log tells: past and present events and objects. All of this blocks: run it in a thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from core_service.audit import schema
from core_service.audit.chain import Row, event_of
from core_service.audit.errors import AuditError
from core_service.audit.fold import MEMORY, Life, Sum
from dataspace.record import Event

Answer = TypeVar("Answer")

_EVENT_COLUMNS: Final = ", ".join(f"events.{column}" for column in Row._fields)


class Recorded(NamedTuple):
    """An event on disk, and its hash."""

    event: Event
    hash: bytes


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events; what is not set admits all. Users by number: those of objects of theirs, or that
    they caused. Times in nanoseconds since the epoch: `since` is in, `until` is not."""

    subject: str = ""
    uids: Collection[int] | None = None
    kinds: Sequence[str] = ()
    since: int | None = None
    until: int | None = None


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """Which objects; what is not set admits all. `at` is a moment in nanoseconds since the epoch: what
    lived then."""

    kinds: Sequence[str] = tuple(sorted(MEMORY))
    uids: Collection[int] | None = None
    name: str = ""
    alive_only: bool = False
    at: int | None = None


class Query:
    """Reads the store in a directory, also while core writes it, also without core."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def oldest_revision(self) -> int:
        """The first event that is still there, 1 where there is none. Raises AuditError."""
        files = schema.files_of(self._directory)
        return schema.first_of(files[0]) if files else 1

    def last_revision(self) -> int:
        """The last event that is on disk, 0 where there is none. Raises AuditError."""
        return self._of_files(_last_of)

    def events(
        self, after: int = 0, limit: int = 100, only: EventFilter | None = None
    ) -> list[Recorded]:
        """Up to `limit` events later than `after`, oldest first. Raises AuditError."""
        return self._of_files(lambda files: _events_of(files, after, limit, only or EventFilter()))

    def history(self, name: str, limit: int = 1000) -> list[Recorded]:
        """The events of one object, oldest first. Raises AuditError."""
        return self.events(0, limit, EventFilter(subject=name))

    def records(
        self, after: int = 0, limit: int = 100, only: RecordFilter | None = None
    ) -> list[Life]:
        """Up to `limit` objects that began later than event `after`, oldest first, each as it is now, or
        was at its end. Raises AuditError."""
        return self._of_files(lambda files: _lives_of(files, after, limit, only or RecordFilter()))

    def totals(self) -> list[Sum]:
        """How many objects of each kind each user ever had, since the log began. Raises AuditError."""
        return self._of_files(_sums_of)

    def _of_files(self, ask: Callable[[list[Path]], Answer]) -> Answer:
        """Ask the files that there are; again if retention removed one before it was read."""
        while True:
            files = schema.files_of(self._directory)
            try:
                return ask(files)
            except AuditError as error:
                if error.path.exists():
                    raise


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(schema.connect_to_read(path)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise AuditError(path, str(error)) from error


def _last_of(files: list[Path]) -> int:
    for path in files[-1:]:
        with _reading(path) as connection:
            return schema.head(connection).revision
    return 0


def _sums_of(files: list[Path]) -> list[Sum]:
    for path in files[-1:]:
        with _reading(path) as connection:
            return list(schema.sums(connection))
    return []


def _events_of(files: list[Path], after: int, limit: int, only: EventFilter) -> list[Recorded]:
    found: list[Recorded] = []
    for path, following in zip_longest(files, files[1:]):
        if following and schema.first_of(following) <= after + 1:
            continue
        with _reading(path) as connection:
            found += _events(connection, after, limit - len(found), only)
        if len(found) >= limit:
            break
    return found


def _lives_of(files: list[Path], after: int, limit: int, only: RecordFilter) -> list[Life]:
    then = None
    if only.at is not None:
        files, then = _at_moment(files, only.at)
    if only.alive_only:
        files = files[-1:]
    found: list[Life] = []
    for path, following in zip_longest(files, files[1:]):
        with _reading(path) as connection:
            found = [_latest(connection, life) for life in found]
            if len(found) < limit:
                found += _lives(connection, after, limit - len(found), only, then)
        if only.at is not None:
            limit = 0  # what began in later files did not live then
        elif following:
            after = max(after, schema.first_of(following) - 1)
    return found


def _events(
    connection: sqlite3.Connection, after: int, limit: int, only: EventFilter
) -> list[Recorded]:
    within = _Where("events.revision > ?", after)
    table = "events"
    if only.uids is not None and len(only.uids) == 1 and not only.subject:
        # CROSS: concerns first, which is in the order of revisions
        table = "concerns CROSS JOIN events USING (revision)"
        within.add("uid = ? AND concerns.revision > ?", *only.uids, after)
    elif only.uids is not None:
        theirs = _among("uid", only.uids)
        concerned = f"SELECT 1 FROM concerns WHERE {theirs} AND revision = events.revision"  # noqa: S608
        within.add(f"EXISTS ({concerned})", *only.uids)
    if only.subject:
        within.add("subject = ?", only.subject)
    if only.kinds:
        within.add(_among("kind", only.kinds), *only.kinds)
    if only.since is not None:
        first = "coalesce((SELECT min(revision) FROM events WHERE wall_ns >= ?), 1 << 62)"
        within.add(f"events.revision >= {first} AND wall_ns >= ?", only.since, only.since)
    if only.until is not None:
        last = "(SELECT max(revision) FROM events WHERE wall_ns < ?)"
        within.add(f"events.revision <= {last} AND wall_ns < ?", only.until, only.until)
    query = (
        f"SELECT {_EVENT_COLUMNS}, hash FROM {table} WHERE {within} "  # noqa: S608 - ours
        "ORDER BY events.revision LIMIT ?"
    )
    return [
        Recorded(event_of(Row(*columns)), digest)
        for *columns, digest in connection.execute(query, (*within.values, limit))
    ]


def _among(column: str, values: Collection[object]) -> str:
    return f"{column} IN ({', '.join('?' * len(values))})"


def _lives(
    connection: sqlite3.Connection, after: int, limit: int, only: RecordFilter, then: int | None
) -> Iterator[Life]:
    """`then` is the last event before the moment that is asked for."""
    within = _Where("revision > ?", after)
    if only.kinds:
        within.add(_among("kind", only.kinds), *only.kinds)
    if only.uids is not None:
        within.add(_among("uid", only.uids), *only.uids)
    if only.name:
        within.add("name = ?", only.name)
    if only.alive_only:
        within.add("ended_revision IS NULL")
    if then is not None:
        within.add("revision <= ? AND ifnull(ended_revision > ?, true)", then, then)
    condition = f"WHERE {within} ORDER BY revision LIMIT ?"
    return schema.lives(connection, condition, (*within.values, limit))


def _latest(connection: sqlite3.Connection, life: Life) -> Life:
    """A life as this later file knows it."""
    if life.ended_revision is not None:
        return life
    return next(schema.lives(connection, "WHERE revision = ?", (life.revision,)), life)


def _at_moment(files: list[Path], moment: int) -> tuple[list[Path], int]:
    """The file that was written at a moment, and those after it, with the last event until then. Order
    is that of events, whatever was done to the clock: of two moments that it shows alike, the later."""
    for number in range(len(files) - 1, -1, -1):
        with _reading(files[number]) as connection:
            query = "SELECT revision FROM events WHERE wall_ns <= ? ORDER BY revision DESC LIMIT 1"
            last = connection.execute(query, (moment,)).fetchone()
        if last:
            return files[number:], last[0]
    return [], 0


class _Where:
    """Conditions that all hold, and their values."""

    def __init__(self, condition: str, *values: int | str) -> None:
        self._conditions = [condition]
        self.values = list(values)

    def add(self, condition: str, *values: int | str) -> None:
        """One more."""
        self._conditions.append(condition)
        self.values += values

    def __str__(self) -> str:
        return " AND ".join(self._conditions)
