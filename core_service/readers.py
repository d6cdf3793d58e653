"""The threads that read the audit log for clients. Slow questions delay nothing but questions,
and those of one user leave half of the threads to others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar
from weakref import WeakValueDictionary

from core_service.workers import workers

READERS: Final = 4
AT_ONCE: Final = 2  # questions of one user, however many clients he has

Answer = TypeVar("Answer")


class Readers:
    """Owns the threads until `close`."""

    def __init__(self) -> None:
        self._pool = workers("reader", READERS)
        self._turns: WeakValueDictionary[int, asyncio.Semaphore] = WeakValueDictionary()

    async def run(self, uid: int, ask: Callable[[], Answer]) -> Answer:
        """Ask in a thread when it is this user's turn."""
        turns = self._turns.setdefault(uid, asyncio.Semaphore(AT_ONCE))
        async with turns:
            return await asyncio.get_running_loop().run_in_executor(self._pool, ask)

    def close(self) -> None:
        """Answer no more; the threads end with what they do."""
        self._pool.shutdown(wait=False)
