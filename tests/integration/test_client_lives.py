"""Clients that do anything at random and die at any instant, engines and cores that are killed: all ends
where it began."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.engines import on_every_engine
from tests.integration.lives.campaign import Campaign, Nursery
from tests.integration.lives.figures import Figures

SEED = "20261122"
DEEDS = {"open", "allocate", "attach", "detach", "run", "share", "write", "free"}
SHMEM_NOISE = 256 << 20  # others have shared memory, too; lives touch more than that by far
FIGURES = Path("lives.json")


@pytest.fixture(scope="module")
def nurseries() -> Iterator[list[Nursery]]:
    """Where clients come from, and as many live at once."""
    with ExitStack() as stack:
        yield [stack.enter_context(Nursery()) for _ in range(3)]


@on_every_engine
def test_lives(tmp_path: Path, nurseries: list[Nursery], engine: str) -> None:
    figures = live(SEED, engine, tmp_path, nurseries, cores=2, lives=3)
    assert figures.cores_killed == 1


@pytest.mark.soak
@on_every_engine
def test_thousands_of_lives(
    tmp_path: Path, nurseries: list[Nursery], capsys: pytest.CaptureFixture[str], engine: str
) -> None:
    """VMSESSION_SEED repeats the choices of a campaign, though not the instants."""
    seed = os.environ.get("VMSESSION_SEED") or secrets.token_hex(4)
    figures = live(seed, engine, tmp_path, nurseries, cores=20, lives=60)
    with capsys.disabled():
        print(f"\n{figures.table()}\nall of it: {FIGURES.with_suffix(f'.{engine}.json')}")
    FIGURES.with_suffix(f".{engine}.json").write_text(figures.json() + "\n")
    assert figures.lives.deeds.keys() >= DEEDS
    assert figures.shmem_delta < SHMEM_NOISE


def live(
    seed: str, engine: str, directory: Path, nurseries: list[Nursery], *, cores: int, lives: int
) -> Figures:
    """A campaign, the seed of which is told if it fails."""
    print(f"VMSESSION_SEED={seed}")
    return Campaign(seed, engine, directory / "audit", nurseries).run(cores, lives)
