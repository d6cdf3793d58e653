"""Verification of the store by itself: the chain, and the tables that its events add up to."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final, NamedTuple

from core_service.audit import schema
from core_service.audit.chain import GENESIS, Row, chained
from core_service.audit.fold import Fold, Life, Sum
from core_service.audit.schema import Head

_LIMIT: Final = 100
"""Discrepancies told at most: one wrong row can make many."""


class Discrepancy(NamedTuple):
    """What does not agree: the file and the row, and what is expected, and what is there."""

    subject: str
    message: str


class Checked(NamedTuple):
    """How many events were checked, where the chain stands, and what is wrong."""

    events: int
    head: Head
    discrepancies: list[Discrepancy]


def verify_chain(directory: Path, from_revision: int = 0, head: Head | None = None) -> Checked:
    """Check what is in the store's directory, also while core writes it, also without core.

    Events after `from_revision` are checked against their hashes; the tables of objects and sums in
    all files that begin after it. With `head`, as AuditLog or an earlier check told it, also that the
    chain comes to it: only so can it be seen that the latest events were cut off. This blocks.
    """
    check = _Check(from_revision, head)
    for path in _from(schema.files_of(directory), from_revision):
        try:
            with closing(schema.connect_to_read(path)) as connection:
                connection.execute("BEGIN")
                check.file(connection, path)
        except (sqlite3.Error, TypeError, ValueError, KeyError) as error:
            check.wrong(path.name, f"cannot be read: {error}")
    return check.result()


class _Check:
    """The state between one file and the next."""

    def __init__(self, from_revision: int, head: Head | None) -> None:
        self._from = from_revision
        self._expected = head if head and head.revision > from_revision else None
        self._before: Head | None = None
        self._fold: Fold | None = None
        self._events = 0
        self._found: list[Discrepancy] = []

    def wrong(self, subject: str, message: str) -> None:
        """Note a discrepancy."""
        if len(self._found) < _LIMIT:
            self._found.append(Discrepancy(subject, message))

    def result(self) -> Checked:
        """What was found in all files."""
        last = self._before or Head(0, GENESIS)
        if self._expected and self._expected.revision > last.revision:
            self.wrong(
                "chain", f"ends with event {last.revision}, not {self._expected.revision}: cut off"
            )
        return Checked(self._events, last, self._found)

    def file(self, connection: sqlite3.Connection, path: Path) -> None:
        """Check one file, in one transaction."""
        first = self._beginning(connection, path)
        tables = _Tables(connection, path, self) if first > self._from else None
        if tables:
            tables.carried(self._fold)
        for row, digest in self._rows(connection, path, first):
            if tables:
                with suppress(ValueError):  # no such kind, no JSON: the hash has told
                    tables.event(row)
            if self._replaced(Head(row.revision, digest)):
                self.wrong(path.name, f"event {row.revision} is not the one that was recorded")
        self._fold = tables.finish() if tables else None

    def _replaced(self, there: Head) -> bool:
        expected = self._expected
        return bool(expected and expected.revision == there.revision and expected != there)

    def _beginning(self, connection: sqlite3.Connection, path: Path) -> int:
        first, before = connection.execute("SELECT first, before FROM file").fetchone()
        if first != schema.first_of(path):
            self.wrong(path.name, f"begins with event {first}: it was renamed")
        told = Head(first - 1, before)
        if self._before is None and first > self._from + 1 and self._from:
            self.wrong(path.name, f"begins with event {first}: those after {self._from} are gone")
        if self._before and self._before.revision != told.revision:
            self.wrong(path.name, f"begins with event {first}, after {self._before.revision}")
        elif (self._before and self._before != told) or (first == 1 and before != GENESIS):
            self.wrong(path.name, "does not follow from the file before: another hash")
        self._before = told
        return int(first)

    def _rows(
        self, connection: sqlite3.Connection, path: Path, first: int
    ) -> Iterator[tuple[Row, bytes]]:
        before = self._before or Head(0, GENESIS)
        query = f"SELECT {schema.EVENT_COLUMNS}, hash FROM events "  # noqa: S608 - ours
        if first <= self._from:
            anchor = "SELECT revision, hash FROM events WHERE revision = ?"
            before = Head(*(connection.execute(anchor, (self._from,)).fetchone() or before))
        rows = connection.execute(
            query + "WHERE revision > ? ORDER BY revision", (before.revision,)
        )
        for *columns, digest in rows:
            row = Row(*columns)
            if row.revision != before.revision + 1:
                self.wrong(path.name, f"event {row.revision} comes after {before.revision}")
            elif chained(before.hash, row) != digest:
                self.wrong(path.name, f"event {row.revision} does not have its hash: changed")
            self._events += 1
            before = Head(row.revision, digest)
            yield row, digest
        self._before = before


class _Tables:
    """The tables of one file against its events."""

    def __init__(self, connection: sqlite3.Connection, path: Path, check: _Check) -> None:
        self._connection = connection
        self._file = path.name
        self._wrong = check.wrong
        self._lives = 0
        self._concerns = 0
        self._fold = Fold()

    def carried(self, expected: Fold | None) -> None:
        """Begin with what the file began with, which is what the one before ended with."""
        living = list(schema.lives(self._connection, "ORDER BY revision", (), "carried_objects"))
        sums = list(schema.sums(self._connection, "carried_sums"))
        expected = expected or (Fold() if self._file == schema.path_of(Path(), 1).name else None)
        if expected and (expected.living != living or _ordered(expected.sums) != _ordered(sums)):
            self._wrong(self._file, "what it carried on is not what lived in the file before")
        self._fold = Fold(living, sums)
        self._lives = len(living)

    def event(self, row: Row) -> None:
        """Take the next event."""
        life, _, uids = self._fold.apply(row)
        self._concerns += len(uids)
        for uid in uids:
            query = "SELECT 1 FROM concerns WHERE uid = ? AND revision = ?"
            if not self._connection.execute(query, (uid, row.revision)).fetchone():
                self._wrong(self._file, f"event {row.revision} is hidden from user {uid}")
        if life is not None:
            self._lives += life.revision == row.revision
            if life.ended_revision is not None:
                self._compare(life)

    def finish(self) -> Fold:
        """Compare what is left, and return it."""
        for life in self._fold.living:
            self._compare(life)
        for table, count in (("objects", self._lives), ("concerns", self._concerns)):
            query = f"SELECT count(*) FROM {table}"  # noqa: S608 - ours
            (rows,) = self._connection.execute(query).fetchone()
            if rows != count:
                self._wrong(self._file, f"{table} has {rows} rows, the events make {count}")
        if _ordered(self._fold.sums) != _ordered(schema.sums(self._connection)):
            self._wrong(self._file, "the sums are not those of the events")
        return self._fold

    def _compare(self, life: Life) -> None:
        there = next(schema.lives(self._connection, "WHERE revision = ?", (life.revision,)), None)
        if there is None:
            self._wrong(self._file, f"{life.name}, of event {life.revision}, is not in objects")
        elif there != life:
            expected, found = asdict(life), asdict(there)
            told = ", ".join(
                f"{column} is {found[column]!r}, not {expected[column]!r}"
                for column in expected
                if expected[column] != found[column]
            )
            self._wrong(self._file, f"{life.name}, of event {life.revision}: {told}")


def _from(files: list[Path], revision: int) -> list[Path]:
    """Those that have events after a revision, or may have."""
    begun = [path for path in files if schema.first_of(path) <= revision + 1]
    return files[max(0, len(begun) - 1) :]


def _ordered(sums: Iterable[Sum]) -> list[Sum]:
    return sorted(sums, key=lambda total: (total.uid, total.kind))
