"""Short forms of `soft_fuzz.py`: random guest code does not end the software engine.

The long form is 100,000 runs, and as many from wild states, by VMSESSION_SEED: five minutes.
"""

from __future__ import annotations

import time

import pytest

from tests import sanitizers
from tests.engine.soft_fuzz import campaign
from tests.hostile.budget import Budget
from tests.hostile.figures import Figures
from tests.sanitizers import Sanitized

RUNS = 600
SANITIZED_RUNS = 150
SOAK_RUNS = 100_000


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


@pytest.mark.parametrize("wild", [False, True])
def test_random_code_with_sanitizers(wild: bool, sanitized: Sanitized) -> None:
    said: list[str] = []
    executable, variables = sanitized("soft"), sanitizers.options("soft")
    outcomes = campaign(
        SANITIZED_RUNS,
        2_000_000,
        said.append,
        wild=wild,
        executable=executable,
        variables=variables,
    )
    assert said == []
    assert outcomes.total() == SANITIZED_RUNS


@pytest.mark.soak
@pytest.mark.parametrize("wild", [False, True])
def test_random_code_for_long(wild: bool, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    seed = Budget.soak().chance().getrandbits(40)
    began = time.monotonic()
    outcomes = campaign(SOAK_RUNS, seed, said.append, wild=wild)
    figures = Figures(f"code-{'wild' if wild else 'sane'}", str(seed), outcomes=outcomes)
    figures.numbers["seconds"] = time.monotonic() - began
    with capsys.disabled():
        print(figures.publish())
    assert said == []
