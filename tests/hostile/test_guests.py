"""Guests that loop for ever, storm their VMM, and touch all that they have: each hears a pause, costs its
owner what was charged at first, and nobody else more than the processor's time.

The long form has all guests on all engines at once, for VMSESSION_SOAK_SECONDS (120).
"""

from __future__ import annotations

from itertools import cycle, product

import pytest

from tests.conftest import expected
from tests.hostile.arena import Arena
from tests.hostile.attackers import attack
from tests.hostile.budget import Budget
from tests.hostile.figures import Figures
from tests.hostile.guest_vmm import GUESTS
from tests.integration.running_core import RunningCore


def campaign(core: RunningCore, budget: Budget, machines: list[tuple[str, str]]) -> Figures:
    """Each with its VMM and a user of its own, all at once."""
    figures = Figures("guests", budget.seed)
    arena = Arena(core, figures)
    try:
        with arena.attacked():
            figures.outcomes = attack(core, "tests.hostile.guest_vmm", budget, machines)
    finally:
        arena.close()
    for engine, guest in machines:
        assert figures.outcomes[f"{engine} {guest}: PAUSED"] > 0
    return figures


def test_hostile_guests(core: RunningCore) -> None:
    machines = list(zip(cycle(expected()), GUESTS, strict=False))
    figures = campaign(core, Budget.short(3), machines)
    for engine, guest in machines:
        if guest not in {"loops", "interrupts"}:
            exits = sum(figures.outcomes[f"{engine} {guest}: {name}"] for name in ("PORT", "MMIO"))
            assert exits > 0, guest


@pytest.mark.soak
def test_hostile_guests_for_long(core: RunningCore, capsys: pytest.CaptureFixture[str]) -> None:
    figures = campaign(core, Budget.soak(), list(product(expected(), GUESTS)))
    with capsys.disabled():
        print(figures.publish())
