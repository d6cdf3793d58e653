"""News of the log for those who watch it: the latest events, kept once for all watchers.

A watcher takes what follows the last event that it has seen, at its own pace; one that falls behind
further than what is kept is told so. So a slow watcher costs nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Final

from core_service.audit.writer import AuditLog, Committed

KEPT: Final = 1024


class LaggedError(Exception):
    """What follows is not kept any more."""


class News:
    """The latest events that are on disk."""

    def __init__(self, log: AuditLog, kept: int = KEPT) -> None:
        """Follow a log; belongs to the event loop that runs."""
        self._last = log.head.revision
        self._latest: deque[Committed] = deque(maxlen=kept)
        self._changed = asyncio.Event()
        self._closed = False
        log.subscribe(self._committed)

    @property
    def first(self) -> int:
        """The revision from which on events are kept."""
        return self.last + 1 - len(self._latest)

    @property
    def last(self) -> int:
        """The latest event that watchers can be told."""
        return self._last

    async def after(self, revision: int) -> list[Committed]:
        """Wait for what follows an event; empty when no more is to come. Raises LaggedError."""
        while True:
            if revision + 1 < self.first:
                raise LaggedError
            news = list(islice(self._latest, revision + 1 - self.first, None))
            if news or self._closed:
                return news
            await self._changed.wait()

    def close(self) -> None:
        """Core stops: whoever waits is told."""
        self._closed = True
        self._wake()

    def _committed(self, events: Sequence[Committed]) -> None:
        if events[0].event.revision != self._last + 1:  # the store went on after a failure
            self._latest.clear()
        self._latest.extend(events)
        self._last = events[-1].event.revision
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
