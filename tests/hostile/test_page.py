"""A vCPU page of which every word is overwritten while the engine works on it: it obeys once that is
over, and nobody else notices.

The long form takes VMSESSION_SOAK_SECONDS (120) for each of the two builds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import expected
from tests.hostile.arena import Arena
from tests.hostile.attackers import attack
from tests.hostile.budget import Budget
from tests.hostile.figures import Figures
from tests.hostile.other_engines import core_with, install_own, install_sanitized
from tests.hostile.scribbler import compiled
from tests.integration.running_core import RunningCore
from tests.sanitizers import REPORTS, Sanitized


@pytest.fixture(params=["installed", "sanitized"])
def build(request: pytest.FixtureRequest) -> str:
    """How the engines are compiled."""
    chosen: str = request.param
    return chosen


@pytest.fixture
def core(build: str, sanitized: Sanitized, tmp_path: Path) -> Iterator[RunningCore]:
    """A core on those engines, none of which may be reported."""
    for name in expected():
        if build == "sanitized":
            install_sanitized(tmp_path, name, sanitized)
        else:
            install_own(tmp_path, name)
    running = core_with(tmp_path)
    try:
        yield running
        running.stop()
        assert not any(report in running.log() for report in REPORTS), running.log()
    finally:
        running.close()


def campaign(core: RunningCore, budget: Budget, build: str) -> Figures:
    """One VMM for each engine, all at once."""
    figures = Figures(f"page-{build}", budget.seed)
    arena = Arena(core, figures)
    try:
        with compiled() as library, arena.attacked():
            each = [(engine, library) for engine in expected()]
            figures.outcomes = attack(core, "tests.hostile.page_attacker", budget, each)
    finally:
        arena.close()
    return figures


def test_pages_that_are_overwritten(core: RunningCore, build: str) -> None:
    figures = campaign(core, Budget.short(2), build)
    for engine in expected():
        seen = [name for name in figures.outcomes if name.startswith(f"{engine}: exits seen")]
        assert len(seen) >= 3, figures.outcomes


@pytest.mark.soak
def test_pages_that_are_overwritten_for_long(
    core: RunningCore, build: str, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = campaign(core, Budget.soak(), build)
    with capsys.disabled():
        print(figures.publish())
