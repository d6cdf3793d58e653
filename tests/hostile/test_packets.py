"""Engines with sanitizers that get garbage from core: each packet is answered once, the engine lives.

The long form takes VMSESSION_SOAK_SECONDS (120) for each engine.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import sanitizers
from tests.conftest import expected
from tests.engine.harness import Engine, environment
from tests.hostile.budget import Budget
from tests.hostile.figures import Figures
from tests.hostile.packet_attacker import Attacker
from tests.sanitizers import Sanitized

STRANGERS = {"/dev/zero", "/", "anon_inode:[eventfd]"}  # of those that it is sent

on_every_engine = pytest.mark.parametrize("name", expected())


def campaign(name: str, executable: Path, budget: Budget) -> Figures:
    """One engine, from its hello to its end, which must be in order."""
    figures = Figures(f"packets-{name}", budget.seed)
    with Engine(executable, environment(name) | sanitizers.options(name)) as engine:
        engine.hello()
        attacker = Attacker(engine, budget.chance())
        attacker.attack(budget)
        assert engine.fds() == 0
        assert not STRANGERS & set(engine.opened().values())
    assert engine.status == 0
    figures.outcomes = attacker.outcomes
    figures.numbers["packets"] = attacker.outcomes.total()
    figures.numbers["seconds"] = budget.seconds
    return figures


@on_every_engine
def test_packets_of_any_kind(name: str, sanitized: Sanitized) -> None:
    figures = campaign(name, sanitized(name), Budget.short(1.5))
    assert figures.outcomes["OK"] > 0
    assert figures.outcomes["BAD_MESSAGE"] > 0
    assert figures.outcomes["STATE"] > 0


@pytest.mark.soak
@on_every_engine
def test_packets_of_any_kind_for_long(
    name: str, sanitized: Sanitized, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = campaign(name, sanitized(name), Budget.soak())
    with capsys.disabled():
        print(figures.publish())
