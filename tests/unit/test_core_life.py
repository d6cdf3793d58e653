"""The life of the service: its phases, and what draining does to sessions and clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core_service.life import Life, Phase
from core_service.refusal import Refusal
from core_service.settings import Settings
from tests.unit.core_in_process import InProcess, behaviours, in_process


@pytest.fixture
async def running(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[tuple[InProcess, asyncio.Event]]:
    """A core that serves, and the event of its drain's end."""
    settings = Settings(directory=tmp_path, audit_directory=tmp_path / "audit")
    process = in_process(monkeypatch, behaviours(tmp_path, "good"), settings)
    over = asyncio.Event()
    process.core.drain.on_over = over.set
    await process.core.begin()
    process.core.life.reach(Phase.SERVING)
    yield process, over
    await process.must_be_empty()


async def test_a_life_goes_forward_only() -> None:
    life = Life()
    seen: list[Phase] = []
    life.on_change(seen.append)
    life.reach(Phase.SERVING)
    life.reach(Phase.STARTING)
    life.reach(Phase.SERVING)
    assert life.phase is Phase.SERVING
    assert not life.draining
    life.reach(Phase.STOPPING)
    life.reach(Phase.DRAINING)
    assert seen == [Phase.SERVING, Phase.STOPPING]
    assert life.draining
    assert life.stopping


async def test_who_waits_for_a_phase_is_woken_by_a_later_one() -> None:
    life = Life()
    waiting = asyncio.ensure_future(life.until(Phase.DRAINING))
    life.reach(Phase.SERVING)
    await asyncio.sleep(0)
    assert not waiting.done()
    life.reach(Phase.STOPPING)
    await asyncio.wait_for(waiting, 5)


async def test_draining_is_over_at_once_without_sessions(
    running: tuple[InProcess, asyncio.Event],
) -> None:
    process, over = running
    process.client()
    process.core.drain.begin(None)
    assert over.is_set()
    assert process.core.drain.is_over
    assert process.core.drain.sessions == 0


async def test_draining_waits_for_the_last_session(
    running: tuple[InProcess, asyncio.Event],
) -> None:
    process, over = running
    client = process.client()
    first, second = await process.session(client), await process.session(client)
    drain = process.core.drain
    drain.begin(None)
    assert drain.remaining is None
    assert drain.sessions == 2
    await process.core.close_session(first, "DeleteSession")
    assert drain.sessions == 1
    assert not over.is_set()
    await process.core.close_session(second, "DeleteSession")
    assert over.is_set()
    assert drain.sessions == 0


async def test_draining_ends_with_a_session_that_was_under_way(
    running: tuple[InProcess, asyncio.Event],
) -> None:
    process, over = running
    starting = asyncio.ensure_future(process.session(process.client()))
    await asyncio.sleep(0)
    process.core.drain.begin(None)
    assert not over.is_set()
    assert process.core.drain.sessions == 1
    session = await starting
    assert not over.is_set()
    await process.core.close_session(session, "DeleteSession")
    assert over.is_set()


async def test_nothing_new_while_draining(running: tuple[InProcess, asyncio.Event]) -> None:
    process, _ = running
    early = process.client()
    await process.session(early)
    process.core.drain.begin(None)
    with pytest.raises(Refusal, match="takes no new sessions") as refused:
        await process.session(early)
    assert refused.value.reason == "SHUTTING_DOWN"
    process.core.must_record(early)  # it may go on with what it has
    late = process.client()
    with pytest.raises(Refusal, match="takes no new clients") as refused:
        process.core.must_record(late)
    assert refused.value.reason == "SHUTTING_DOWN"


async def test_the_time_to_drain_is_bounded(running: tuple[InProcess, asyncio.Event]) -> None:
    process, over = running
    await process.session(process.client())
    process.core.drain.begin(0.01)
    assert not over.is_set()
    await asyncio.wait_for(over.wait(), 5)
    assert process.core.drain.sessions == 1
    assert process.core.drain.remaining == 0


@pytest.mark.parametrize("times", [(3600, None, 60), (None, 60, 3600), (60, 3600, None)])
async def test_of_two_drains_the_earlier_end_counts(
    running: tuple[InProcess, asyncio.Event], times: tuple[float | None, ...]
) -> None:
    process, _ = running
    await process.session(process.client())
    for within in times:
        process.core.drain.begin(within)
    assert process.core.drain.remaining == pytest.approx(60, abs=5)


async def test_progress_is_told_with_each_session_that_ends(
    running: tuple[InProcess, asyncio.Event],
) -> None:
    process, _ = running
    client = process.client()
    first = await process.session(client)
    await process.session(client)
    process.core.drain.begin(None)
    told = asyncio.ensure_future(process.core.drain.progress(3600))
    await asyncio.sleep(0)
    await process.core.close_session(first, "DeleteSession")
    await asyncio.wait_for(told, 5)
    await asyncio.wait_for(process.core.drain.progress(0.01), 5)


async def test_a_stop_ends_draining(running: tuple[InProcess, asyncio.Event]) -> None:
    process, over = running
    await process.session(process.client())
    drain = process.core.drain
    drain.begin(None)
    told = asyncio.ensure_future(drain.progress(3600))
    await asyncio.sleep(0)
    process.core.life.reach(Phase.STOPPING)
    drain.close()
    await asyncio.wait_for(told, 5)
    assert drain.is_over
    assert drain.sessions == 1
    assert not over.is_set()  # who stops core need not be told
    drain.begin(1)
    assert drain.remaining is None
