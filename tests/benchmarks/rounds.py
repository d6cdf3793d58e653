"""Measuring several things in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: `rounds` of everything, `exits` in each, a fleet for `seconds`."""

    rounds: int
    exits: int
    seconds: float

    def few(self) -> int:
        """Exits in a round where one costs hundreds of microseconds."""
        return self.exits // 20


THOROUGH = Effort(rounds=15, exits=5000, seconds=1.0)
QUICK = Effort(rounds=5, exits=2000, seconds=0.4)


def in_turns(rounds: int, measures: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """A B C A B C ...: the samples of each, by name. The first turn of each only warms it up."""
    samples: dict[str, list[float]] = {name: [] for name in measures}
    for measure in measures.values():
        measure()
    gc.collect()
    for _ in range(rounds):
        for name, measure in measures.items():
            samples[name].append(measure())
    return samples
