"""The files of the store: SQLite, one after the other, each complete in itself.

A file has its events, the objects that lived while it was the last one, the sums since the log
began, and in `carried_...` what both were when the file began.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import astuple, fields
from pathlib import Path
from typing import Final, NamedTuple

from core_service.audit.chain import Row
from core_service.audit.fold import Life, Sum

FORMAT: Final = 1
_PREFIX: Final = "events-"
_SUFFIX: Final = ".sqlite"

_LIFE: Final = """
    revision INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    size INTEGER NOT NULL,
    holder TEXT NOT NULL,
    uid INTEGER NOT NULL,
    label TEXT NOT NULL,
    origin TEXT NOT NULL,
    created_wall_ns INTEGER NOT NULL,
    created_monotonic_ns INTEGER NOT NULL,
    created_boot_id TEXT NOT NULL,
    held_wall_ns INTEGER,
    ended_revision INTEGER,
    ended_wall_ns INTEGER,
    ended_monotonic_ns INTEGER,
    ended_boot_id TEXT,
    cause TEXT NOT NULL,
    mappings INTEGER NOT NULL,
    handed_out INTEGER NOT NULL
"""
_SUM: Final = """
    uid INTEGER NOT NULL,
    kind TEXT NOT NULL,
    created INTEGER NOT NULL,
    created_bytes INTEGER NOT NULL,
    ended INTEGER NOT NULL,
    ended_bytes INTEGER NOT NULL,
    PRIMARY KEY (uid, kind)
"""
_TABLES: Final = f"""
CREATE TABLE file (format INTEGER NOT NULL, first INTEGER NOT NULL, before BLOB NOT NULL) STRICT;
CREATE TABLE events (
    revision INTEGER PRIMARY KEY,
    monotonic_ns INTEGER NOT NULL,
    wall_ns INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    actor TEXT NOT NULL,
    label TEXT NOT NULL,
    cause TEXT NOT NULL,
    detail TEXT NOT NULL,
    hash BLOB NOT NULL
) STRICT;
CREATE INDEX events_by_subject ON events (subject);
CREATE INDEX events_by_kind ON events (kind);
CREATE INDEX events_by_time ON events (wall_ns);
CREATE TABLE concerns (
    uid INTEGER NOT NULL, revision INTEGER NOT NULL, PRIMARY KEY (uid, revision)
) STRICT, WITHOUT ROWID;
CREATE TABLE objects ({_LIFE}) STRICT;
CREATE INDEX objects_by_name ON objects (name);
CREATE INDEX objects_by_user ON objects (uid);
CREATE INDEX objects_living ON objects (revision) WHERE ended_revision IS NULL;
CREATE TABLE sums ({_SUM}) STRICT, WITHOUT ROWID;
CREATE TABLE carried_objects ({_LIFE}) STRICT;
CREATE TABLE carried_sums ({_SUM}) STRICT, WITHOUT ROWID;
"""
_FIXED: Final = ("file", "events", "concerns", "carried_objects", "carried_sums")
_TRIGGERS: Final = "".join(
    f"CREATE TRIGGER {table}_{verb} BEFORE {verb} ON {table} "
    f"BEGIN SELECT RAISE(ABORT, '{table} are never changed'); END;"
    for table in _FIXED
    for verb in ("update", "delete")
) + (
    "CREATE TRIGGER objects_delete BEFORE DELETE ON objects "
    "BEGIN SELECT RAISE(ABORT, 'objects are never forgotten'); END;"
    "CREATE TRIGGER objects_update BEFORE UPDATE ON objects WHEN old.ended_revision IS NOT NULL "
    "BEGIN SELECT RAISE(ABORT, 'what has ended is never changed'); END;"
)
_LIFE_COLUMNS: Final = [column.name for column in fields(Life)]
_SUM_COLUMNS: Final = [column.name for column in fields(Sum)]
EVENT_COLUMNS: Final = ", ".join(Row._fields)


class Head(NamedTuple):
    """Where a chain stands: the last revision, and its hash."""

    revision: int
    hash: bytes


def path_of(directory: Path, first: int) -> Path:
    """The file that begins with a revision."""
    return directory / f"{_PREFIX}{first:020}{_SUFFIX}"


def first_of(path: Path) -> int:
    """The revision that a file begins with."""
    return int(path.name.removeprefix(_PREFIX).removesuffix(_SUFFIX))


def files_of(directory: Path) -> list[Path]:
    """The files of a store, oldest first."""
    return sorted(directory.glob(f"{_PREFIX}{'[0-9]' * 20}{_SUFFIX}"))


def create(directory: Path, before: Head, living: list[Life], sums: list[Sum]) -> Path:
    """Make the file that goes on after `before`: under another name until it is whole."""
    path = path_of(directory, before.revision + 1)
    unfinished = path.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(unfinished, isolation_level=None)
    try:
        connection.executescript(f"BEGIN; {_TABLES} {_TRIGGERS}")
        connection.execute(
            "INSERT INTO file VALUES (?, ?, ?)", (FORMAT, before.revision + 1, before.hash)
        )
        for table in ("objects", "carried_objects"):
            put_lives(connection, living, table)
        for table in ("sums", "carried_sums"):
            put_sums(connection, sums, table)
        connection.execute("COMMIT")
        # now: a kill while it has its final name would leave a journal that no reader can roll back
        connection.execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()
    unfinished.rename(path)
    _sync(directory)
    return path


def connect(path: Path) -> sqlite3.Connection:
    """Open a file to write to; any thread may use the connection, one at a time."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a file to read only."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)


def put_lives(
    connection: sqlite3.Connection, lives: Iterable[Life], table: str = "objects"
) -> None:
    """Write objects, over what is there of them."""
    connection.executemany(_upsert(table, _LIFE_COLUMNS, 1), map(astuple, lives))


def put_sums(connection: sqlite3.Connection, sums: Iterable[Sum], table: str = "sums") -> None:
    """Write sums, over what is there of them."""
    connection.executemany(_upsert(table, _SUM_COLUMNS, 2), map(astuple, sums))


def lives(
    connection: sqlite3.Connection,
    condition: str = "",
    values: Iterable[object] = (),
    table: str = "objects",
) -> Iterator[Life]:
    """Read objects; `condition` is what follows the table's name in SQL."""
    query = f"SELECT {', '.join(_LIFE_COLUMNS)} FROM {table} {condition}"  # noqa: S608 - ours
    return (Life(*row) for row in connection.execute(query, tuple(values)))


def sums(connection: sqlite3.Connection, table: str = "sums") -> Iterator[Sum]:
    """Read sums."""
    query = f"SELECT {', '.join(_SUM_COLUMNS)} FROM {table}"  # noqa: S608 - ours
    return (Sum(*row) for row in connection.execute(query))


def head(connection: sqlite3.Connection) -> Head:
    """The last event of a file, or what it begins after."""
    last = "SELECT revision, hash FROM events ORDER BY revision DESC LIMIT 1"
    row = connection.execute(last).fetchone()
    return Head(*(row or connection.execute("SELECT first - 1, before FROM file").fetchone()))


def _upsert(table: str, columns: list[str], keys: int) -> str:
    marks = ", ".join("?" * len(columns))
    changes = ", ".join(f"{column} = excluded.{column}" for column in columns[keys:])
    return (
        f"INSERT INTO {table} VALUES ({marks}) "  # noqa: S608 - ours
        f"ON CONFLICT ({', '.join(columns[:keys])}) DO UPDATE SET {changes}"
    )


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
