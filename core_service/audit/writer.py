"""The audit log as core uses it: events go into a queue, one thread writes them in groups."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from core_service.audit.chain import event_of, row_of
from core_service.audit.errors import AuditError, AuditFailure
from core_service.audit.fold import ENDINGS, Life
from core_service.audit.schema import Head
from core_service.audit.store import Durability, Store, lock
from dataspace.record import Event

log = structlog.get_logger()

FILE_EVENTS: Final = 1_000_000
_GROUP: Final = 1024
"""Events in one transaction at most."""
_RETRY: Final = 0.25
"""Seconds until a store that could not be written is tried again."""
_EXPECTED: Final = (sqlite3.Error, OSError, AuditError)
"""How a store fails. Anything else is a defect."""


class Committed(NamedTuple):
    """An event that is on disk, its hash, and the users whom it concerns."""

    event: Event
    hash: bytes
    uids: frozenset[int]


class AuditLog:
    """Events in the order of their revisions, each on disk before anybody is answered.

    `append` is for any thread; `recorded`, `subscribe` and the callbacks belong to one event loop.
    """

    def __init__(self, directory: Path, lock_fd: int, open_store: Callable[[], Store]) -> None:
        """Use `open`."""
        self._directory = directory
        self._lock_fd = lock_fd
        self._open_store = open_store
        self._store: Store | None = open_store()
        self._head = self._store.head
        self._alive = [replace(life) for life in self._store.fold.living]
        self._appended = self._head.revision
        self._queue: deque[Event] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._why: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self.on_health: Callable[[], None] = lambda: None
        self._subscribers: list[Callable[[Sequence[Committed]], None]] = []
        self._thread = threading.Thread(target=self._write, name="audit writer")
        self._thread.start()

    @classmethod
    def open(
        cls,
        directory: Path,
        durability: Durability = "process",
        file_events: int = FILE_EVENTS,
        keep_files: int = 0,
    ) -> AuditLog:
        """Open the store in `directory`, or begin one; go on after its last event.

        `process` durability survives the kill of core at any instant, `power` the loss of power. A
        new file begins after `file_events` events; the newest `keep_files` are kept, 0 keeps all.
        Raises AuditError.
        """
        lock_fd = lock(directory)
        try:
            return cls(
                directory, lock_fd, lambda: Store(directory, durability, file_events, keep_files)
            )
        except (sqlite3.Error, OSError) as error:
            os.close(lock_fd)
            raise AuditError(directory, _told(error)) from error
        except BaseException:
            os.close(lock_fd)
            raise

    @property
    def directory(self) -> Path:
        """Where the store is, for Query and verify_chain."""
        return self._directory

    @property
    def last_revision(self) -> int:
        """The revision of the latest event that was appended, recorded or not."""
        return self._appended

    @property
    def head(self) -> Head:
        """The latest event that is recorded, and its hash."""
        return self._head

    @property
    def healthy(self) -> bool:
        """False while the store cannot be written."""
        return self._why is None

    def alive(self) -> list[tuple[str, str]]:
        """What had no end when the log was opened, as (name, kind), in the order of creation."""
        return [(life.name, life.kind) for life in self._alive]

    def living(self) -> list[Life]:
        """The same, with what the log knows of each."""
        return list(self._alive)

    def require(self) -> None:
        """To be asked before anything is made. Raises AuditFailure while the store cannot be written."""
        if self._why is not None:
            raise AuditFailure(self._why)

    def append(self, event: Event) -> None:
        """Take an event; it is on disk once `recorded` returns. Never blocks.

        While the store cannot be written, what ends or takes away is taken nevertheless and waits; all
        else raises AuditFailure, and did not happen. Raises ValueError unless the revision is the next.
        """
        if event.kind not in ENDINGS:
            self.require()
        with self._changed:
            if self._closing:
                raise AuditFailure("it is closed")
            if event.revision != self._appended + 1:
                raise ValueError(f"event {event.revision} after event {self._appended}")
            self._appended = event.revision
            self._queue.append(event)
            self._changed.notify()

    async def recorded(self, revision: int) -> None:
        """Return when the event of that revision, and all before, are on disk. Raises AuditFailure when
        the store cannot be written; the events wait, and are written when that is possible again."""
        if revision <= self._head.revision:
            return
        self.require()
        if revision > self._appended:
            raise ValueError(f"event {revision} after event {self._appended}")
        self._loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append((revision, done))
        if revision <= self._head.revision:  # committed before the writer knew the loop
            self._settle()
        await done

    def subscribe(self, callback: Callable[[Sequence[Committed]], None]) -> Callable[[], None]:
        """Have `callback` called on the loop with every group of events once it is on disk; what is
        returned ends that."""
        self._loop = asyncio.get_running_loop()
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def close(self) -> None:
        """Write what waits, end the thread, let go of the store. Raises AuditFailure if the store cannot
        be written: it is closed all the same, and what waited is lost."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify()
        self._thread.join()
        os.close(self._lock_fd)
        if self._queue:
            raise AuditFailure(f"{self._why}; {len(self._queue)} events are lost")

    # -- the writer's thread

    def _write(self) -> None:
        while self._wait():
            last = self._closing  # one that was begun before is not the last attempt
            try:
                self._record()
            except Exception as error:  # whatever it is: callers wait for this thread
                self._fail(error)
                if last:
                    break
        if self._store is not None:
            self._store.close()

    def _wait(self) -> bool:
        """Whether there is something to write."""
        with self._changed:
            if self._why is not None:
                self._changed.wait_for(lambda: self._closing, _RETRY)
            self._changed.wait_for(lambda: self._queue or self._closing)
            return bool(self._queue)

    def _record(self) -> None:
        committed: list[Committed] = []
        if self._store is None:
            self._store = self._open_store()
            self._must_have_all(self._store.head)
            # a commit that failed may have come to disk all the same
            for row, digest, uids in self._store.later_than(self._head.revision):
                committed.append(Committed(event_of(row), digest, uids))
        rows = [row_of(event) for event in self._next_group(self._store.head.revision)]
        results = self._store.append(rows) if rows else []
        committed += [
            Committed(event_of(row), digest, outcome.uids)
            for row, (digest, outcome) in zip(rows, results, strict=True)
        ]
        self._head = self._store.head
        self._next_group(self._head.revision)
        if self._why is not None:
            self._why = None
            log.info("audit log can be written again", directory=str(self._directory))
            self._call(self.on_health)
        self._call(self._settle, committed)

    def _must_have_all(self, there: Head) -> None:
        """What was recorded must not have gone while the store could not be written."""
        if there.revision < self._head.revision:
            why = f"ends with event {there.revision}; {self._head.revision} were recorded"
            raise AuditError(self._directory, why)

    def _next_group(self, recorded: int) -> list[Event]:
        """Forget what is on disk, and look at what comes next."""
        with self._changed:
            while self._queue and self._queue[0].revision <= recorded:
                self._queue.popleft()
            return list(islice(self._queue, _GROUP))

    def _fail(self, error: Exception) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None
        why = _told(error)
        if self._why is None:
            log.error(
                "audit log cannot be written",
                directory=str(self._directory),
                why=why,
                exc_info=None if isinstance(error, _EXPECTED) else error,
            )
        self._why = why
        self._call(self._refuse, why)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            if self._loop is not None:
                self._loop.call_soon_threadsafe(function, *arguments)

    # -- on the loop

    def _settle(self, committed: Sequence[Committed] = ()) -> None:
        waiters, self._waiters = self._waiters, []
        for revision, done in waiters:
            if revision > self._head.revision:
                self._waiters.append((revision, done))
            elif not done.done():
                done.set_result(None)
        if committed:
            for callback in list(self._subscribers):
                callback(committed)

    def _refuse(self, why: str) -> None:
        waiters, self._waiters = self._waiters, []
        for _, done in waiters:
            if not done.done():
                done.set_exception(AuditFailure(why))
        self.on_health()


def _told(error: Exception) -> str:
    if isinstance(error, AuditError):
        return error.why
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) or type(error).__name__
