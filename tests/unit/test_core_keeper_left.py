"""A keeper that an earlier core left, as the next one finds it."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core_service.keeper import client
from core_service.keeper.client import Keeper, KeeperError


@pytest.fixture
async def keeper(tmp_path: Path) -> AsyncIterator[int]:
    """The process of a keeper that an earlier core left."""
    earlier, looking = Keeper(tmp_path, 30), Keeper(tmp_path, 30)
    earlier.start()
    earlier.put("sessions/1", {"label": "left"})
    await earlier.flushed()
    earlier.close()
    looking.find()
    looking.close()
    yield earlier._pid
    earlier._reap()


async def test_one_that_does_not_answer_is_named(
    keeper: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    next_one = Keeper(tmp_path, 30)
    os.kill(keeper, signal.SIGSTOP)
    monkeypatch.setattr(client, "HAND_BACK", 0.1)
    with pytest.raises(KeeperError, match=f"the keeper, process {keeper}, does not answer"):
        next_one.find()
    os.kill(keeper, signal.SIGCONT)
    monkeypatch.undo()
    assert next_one.find() == {"sessions/1": ({"label": "left"}, [])}
    await next_one.end()


async def test_what_nobody_puts_again_is_kept_no_more(keeper: int, tmp_path: Path) -> None:
    next_one = Keeper(tmp_path, 30)
    next_one.find()
    next_one.put("sessions/2", {})
    next_one.forget_found()
    await next_one.flushed()
    next_one.close()
    last = Keeper(tmp_path, 30)
    assert list(last.find()) == ["sessions/2"]
    await last.end()
