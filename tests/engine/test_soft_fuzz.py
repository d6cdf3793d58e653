"""A short form of `soft_fuzz.py`: random guest code does not end the software engine."""

from __future__ import annotations

import pytest

from tests.engine.soft_fuzz import campaign

RUNS = 600


@pytest.mark.parametrize("seed", [0, 1_000_000])
def test_random_code_is_survived(seed: int) -> None:
    said: list[str] = []
    outcomes = campaign(RUNS, seed, said.append)
    assert said == []
    assert outcomes.total() == RUNS
    assert outcomes.keys() <= {"HLT", "PAUSED", "COMPLETED", "SHUTDOWN", "MEMORY_FAULT"}


@pytest.mark.parametrize("seed", [0, 1_000_000])
def test_no_state_is_the_end(seed: int) -> None:
    """Whatever the VMM charges is refused, or entered and survived."""
    said: list[str] = []
    outcomes = campaign(RUNS, seed, said.append, wild=True)
    assert said == []
    assert outcomes["INVALID_STATE"] > 0
    assert outcomes["HLT"] > 0
