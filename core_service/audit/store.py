"""The store: events on disk, with the tables that they add up to, in one transaction.

Everything here blocks; the writer's thread alone calls it once core serves.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal

from core_service.audit import schema
from core_service.audit.chain import GENESIS, Row, chained
from core_service.audit.errors import AuditError
from core_service.audit.fold import Fold, Outcome
from core_service.audit.retention import remove_old
from core_service.audit.schema import Head

Durability = Literal["process", "power"]

_SYNCHRONOUS: Final[dict[Durability, str]] = {"process": "NORMAL", "power": "FULL"}
_TAIL: Final = 1000
"""Events whose chain is checked when a store is opened."""


def lock(directory: Path) -> int:
    """Make the directory if it is not there, and lock it against a second writer; the fd returned holds
    the lock. Raises AuditError, also for a directory into which others could put files of theirs."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _must_be_private(directory)
        fd = os.open(directory / "lock", flags, 0o600)
    except OSError as error:
        raise AuditError(directory, error.strerror or str(error)) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise AuditError(directory, "another core writes here") from error
    return fd


def _must_be_private(directory: Path) -> None:
    status = directory.stat()
    if status.st_uid != os.geteuid():
        raise AuditError(directory, f"belongs to user {status.st_uid}, not to {os.geteuid()}")
    if mode := status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        why = f"others may write to it: its mode is {stat.S_IMODE(status.st_mode):04o}"
        raise AuditError(directory, f"{why}, of which {mode:04o} must not be")


class Store:
    """The last file of the log, open to append to."""

    def __init__(
        self, directory: Path, durability: Durability, file_events: int, keep_files: int
    ) -> None:
        """Open what is there, or begin; `lock` is held. Raises AuditError, OSError, sqlite3.Error."""
        self._directory = directory
        self._durability = durability
        self._file_events = file_events
        self._keep_files = keep_files
        for unfinished in directory.glob("*.new*"):
            unfinished.unlink()
        files = schema.files_of(directory)
        self._head = Head(0, GENESIS)
        self._fold = Fold()
        self._open(files[-1] if files else schema.create(directory, self._head, [], []))

    @property
    def head(self) -> Head:
        """The last event."""
        return self._head

    @property
    def fold(self) -> Fold:
        """What lives after it."""
        return self._fold

    def append(self, rows: Sequence[Row]) -> list[tuple[bytes, Outcome]]:
        """Record events, all or none, and return the hash and the outcome of each. After an error the
        store is to be opened again. Raises sqlite3.Error, OSError."""
        if self._head.revision + 1 - self._first >= self._file_events:
            self._rotate()
        before = self._head.hash
        results: list[tuple[bytes, Outcome]] = []
        for row in rows:
            before = chained(before, row)
            results.append((before, self._fold.apply(row)))
        self._write(rows, results)
        self._head = Head(rows[-1].revision, before)
        return results

    def later_than(self, revision: int) -> list[tuple[Row, bytes, frozenset[int]]]:
        """The events in this file after a revision, with hash and users: what a commit left that seemed
        to have failed. Raises sqlite3.Error."""
        query = (
            f"SELECT {schema.EVENT_COLUMNS}, hash FROM events "  # noqa: S608 - ours
            "WHERE revision > ? ORDER BY revision"
        )
        rows = self._connection.execute(query, (revision,)).fetchall()
        query = "SELECT revision, uid FROM concerns WHERE revision > ?"
        uids: dict[int, set[int]] = {}
        for number, uid in self._connection.execute(query, (revision,)) if rows else ():
            uids.setdefault(number, set()).add(uid)
        return [
            (Row(*columns), digest, frozenset(uids.get(columns[0], ())))
            for *columns, digest in rows
        ]

    def close(self) -> None:
        """Let go of the file."""
        with suppress(sqlite3.Error):
            self._connection.close()

    def _write(self, rows: Sequence[Row], results: list[tuple[bytes, Outcome]]) -> None:
        outcomes = [outcome for _, outcome in results]
        execute, executemany = self._connection.execute, self._connection.executemany
        execute("BEGIN IMMEDIATE")
        executemany(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(*row, digest) for row, (digest, _) in zip(rows, results, strict=True)],
        )
        executemany(
            "INSERT INTO concerns VALUES (?, ?)",
            [
                (uid, row.revision)
                for row, outcome in zip(rows, outcomes, strict=True)
                for uid in outcome.uids
            ],
        )
        lives = {life.revision: life for life, _, _ in outcomes if life}
        schema.put_lives(self._connection, lives.values())
        sums = {(total.uid, total.kind): total for _, total, _ in outcomes if total}
        schema.put_sums(self._connection, sums.values())
        execute("COMMIT")

    def _rotate(self) -> None:
        path = schema.create(self._directory, self._head, self._fold.living, self._fold.sums)
        self._connection.close()
        self._open(path)
        remove_old(self._directory, self._keep_files)

    def _open(self, path: Path) -> None:
        self._connection = schema.connect(path)
        try:
            self._connection.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[self._durability]}")
            self._first = _checked_first(self._connection, path)
            self._head = schema.head(self._connection)
            _check_tail(self._connection, path)
            living = schema.lives(self._connection, "WHERE ended_revision IS NULL")
            self._fold = Fold(living, schema.sums(self._connection))
        except sqlite3.Error as error:
            self._connection.close()
            raise AuditError(path, str(error)) from error
        except BaseException:
            self._connection.close()
            raise


def _checked_first(connection: sqlite3.Connection, path: Path) -> int:
    file_format, first = connection.execute("SELECT format, first FROM file").fetchone()
    if file_format != schema.FORMAT:
        raise AuditError(path, f"has format {file_format}, of which this core knows nothing")
    if first != schema.first_of(path):
        raise AuditError(path, f"begins with event {first}: it was renamed")
    return int(first)


def _check_tail(connection: sqlite3.Connection, path: Path) -> None:
    query = (
        f"SELECT {schema.EVENT_COLUMNS}, hash FROM events "  # noqa: S608 - ours
        "ORDER BY revision DESC LIMIT ?"
    )
    latest = connection.execute(query, (_TAIL,)).fetchall()
    for (*columns, digest), (before_revision, *_, before) in pairwise(latest):
        row = Row(*columns)
        if row.revision != before_revision + 1 or chained(before, row) != digest:
            raise AuditError(path, f"event {row.revision} does not follow from the one before")
