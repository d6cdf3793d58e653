"""Guests that loop for ever, storm their VMM, and touch all that they have: each hears a pause, costs
its owner what was charged first, and nobody else more than the processor's time.

The long form has all guests on all engines, six at once, for VMSESSION_SOAK_SECONDS (120) in all.
"""

from __future__ import annotations

import pytest

from tests.conftest import expected
from tests.hostile.arena import Arena
from tests.hostile.attackers import attack
from tests.hostile.budget import Budget
from tests.hostile.figures import Figures
from tests.hostile.guest_vmm import GUESTS
from tests.integration.running_core import RunningCore


def machines(turn: int) -> list[tuple[str, str]]:
    """All guests, each on another engine than in the turn before."""
    engines = expected()
    return [(engines[(turn + n) % len(engines)], guest) for n, guest in enumerate(GUESTS)]


def campaign(core: RunningCore, budget: Budget, turns: int) -> Figures:
    """Each guest with its VMM and a user of its own, all at once."""
    figures = Figures("guests", budget.seed)
    arena = Arena(core, figures)
    try:
        with arena.attacked():
            for turn in range(turns):
                part = Budget(budget.seconds / turns, budget.seed)
                told = attack(core, "tests.hostile.guest_vmm", part, machines(turn))
                figures.outcomes.update(told)
    finally:
        arena.close()
    for engine, guest in machines(0):
        assert figures.outcomes[f"{engine} {guest}: PAUSED"] > 0
    return figures


def test_hostile_guests(core: RunningCore) -> None:
    figures = campaign(core, Budget.short(3), 1)
    for engine, guest in machines(0):
        if guest not in {"loops", "interrupts"}:
            exits = sum(figures.outcomes[f"{engine} {guest}: {name}"] for name in ("PORT", "MMIO"))
            assert exits > 0, guest


@pytest.mark.soak
def test_hostile_guests_for_long(core: RunningCore, capsys: pytest.CaptureFixture[str]) -> None:
    figures = campaign(core, Budget.soak(), len(expected()))
    with capsys.disabled():
        print(figures.publish())
