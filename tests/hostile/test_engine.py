"""Engines that are core's enemies: each ends, and its session with it, in bounded time; nobody else
notices, and core holds nothing of what they sent.

The long form takes VMSESSION_SOAK_SECONDS (120), and up to 25 more for engines that do not end.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hostile.arena import Arena
from tests.hostile.attackers import attack
from tests.hostile.budget import Budget
from tests.hostile.figures import Figures
from tests.hostile.other_engines import core_with, install, install_own
from tests.integration.running_core import RunningCore, Stubs

HOSTILE = "x86emu"
USERS = 2
VERIFIED_SECONDS = (
    60.0  # it looks again for 30 s at what does not agree, and waits 10 s for an engine
)


class Operator:
    """Has core verified again and again, while engines lie about what they have mapped."""

    def __init__(self, core: RunningCore) -> None:
        self.looks = 0
        self.worst = 0.0
        self._stubs = Stubs(core.socket)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._main)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """While the block runs."""
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._thread.join()
            self._stubs.close()

    def _main(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            self._stubs.verify()
            self.worst = max(self.worst, time.monotonic() - began)
            self.looks += 1
            self._over.wait(0.2)


def campaign(budget: Budget, directory: Path) -> Figures:
    """Two users, each with several machines at once."""
    figures = Figures("engine", budget.seed)
    engines, numbers = directory / "engines", directory / "numbers"
    engines.mkdir()
    numbers.mkdir()
    install_own(engines, "soft")
    hostile = (sys.executable, "-m", "tests.hostile.hostile_engine", budget.seed, numbers)
    install(engines, HOSTILE, *hostile)
    core = core_with(engines)
    try:
        arena, operator = Arena(core, figures), Operator(core)
        try:
            with arena.attacked(), operator.looking():
                each = [(HOSTILE,)] * USERS
                figures.outcomes = attack(core, "tests.hostile.engine_user", budget, each)
        finally:
            arena.close()
        core.stop()
    finally:
        core.close()
    figures.numbers["verifications"] = operator.looks
    figures.numbers["longest verification, seconds"] = operator.worst
    assert operator.looks > 0
    assert operator.worst < VERIFIED_SECONDS
    return figures


def test_engines_that_are_hostile(tmp_path: Path) -> None:
    figures = campaign(Budget.short(5), tmp_path)
    assert figures.outcomes["machines"] > 0
    assert figures.outcomes["ENGINE_DIED"] > 0


@pytest.mark.soak
def test_engines_that_are_hostile_for_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = campaign(Budget.soak(), tmp_path)
    with capsys.disabled():
        print(figures.publish())
