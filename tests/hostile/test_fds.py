"""Both of core's sockets, misused beneath all rules: who owns an fd gets it, and core keeps none.

The long form takes VMSESSION_SOAK_SECONDS (120).
"""

from __future__ import annotations

import pytest

from tests.hostile.arena import Arena
from tests.hostile.attackers import attack
from tests.hostile.budget import Budget
from tests.hostile.figures import Figures
from tests.integration.running_core import RunningCore

ATTACKERS = 3


def campaign(core: RunningCore, budget: Budget) -> Figures:
    """Clients of as many users."""
    figures = Figures("fds", budget.seed)
    arena = Arena(core, figures)
    try:
        with arena.attacked() as witness:
            each = [tuple(witness.names)] * ATTACKERS
            figures.outcomes = attack(core, "tests.hostile.fd_attacker", budget, each)
    finally:
        arena.close()
    return figures


def test_fd_channels_of_any_kind(core: RunningCore) -> None:
    figures = campaign(core, Budget.short(3))
    assert figures.outcomes["an fd of its own"] > 0
    assert figures.outcomes["refused: NOT_FOUND"] > 0


@pytest.mark.soak
def test_fd_channels_of_any_kind_for_long(
    core: RunningCore, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = campaign(core, Budget.soak())
    with capsys.disabled():
        print(figures.publish())
