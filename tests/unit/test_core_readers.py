"""Questions to the log: of one user a few at once, of others meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from core_service.readers import AT_ONCE, READERS, Readers


@pytest.fixture
def readers() -> Iterator[Readers]:
    """Threads to read in."""
    opened = Readers()
    yield opened
    opened.close()


async def test_slow_questions_of_a_user_leave_room_for_others(readers: Readers) -> None:
    answer = threading.Event()
    slow = [asyncio.ensure_future(readers.run(1, answer.wait)) for _ in range(3 * READERS)]
    try:
        async with asyncio.timeout(10):
            assert await readers.run(2, lambda: "answered") == "answered"
        assert not any(question.done() for question in slow)
    finally:
        answer.set()
    assert await asyncio.gather(*slow) == [True] * len(slow)


async def test_a_user_asks_a_few_at_once(readers: Readers) -> None:
    lock, now, most = threading.Lock(), 0, 0
    met = threading.Barrier(AT_ONCE)

    def ask() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        met.wait(10)
        with lock:
            now -= 1

    await asyncio.gather(*(readers.run(1, ask) for _ in range(4 * AT_ONCE)))
    assert most == AT_ONCE
