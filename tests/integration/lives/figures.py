"""The numbers of a campaign, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.integration.lives.nursery import Tally


@dataclass
class Figures:
    """What happened; bytes and seconds. `shmem_delta` is that of the whole host."""

    seed: str
    engine: str
    lives: Tally = field(default_factory=Tally)
    seconds: float = 0.0
    cores: int = 0
    cores_killed: int = 0
    engines_killed: int = 0
    verified: int = 0
    events: int = 0
    dataspaces: int = 0
    shmem_delta: int = 0

    def json(self) -> str:
        """All of it."""
        return json.dumps(vars(self) | {"lives": vars(self.lives)}, indent=2)

    def table(self) -> str:
        """One line for each number."""
        return "\n".join(f"{name:<32} {value:>12}" for name, value in self._rows())

    def _rows(self) -> Iterator[tuple[str, object]]:
        yield "seed", self.seed
        yield "engine", self.engine
        yield "lives", sum(self.lives.ends.values())
        for end, count in sorted(self.lives.ends.items()):
            yield f"  {end}", count
        yield "cores", self.cores
        yield "  killed", self.cores_killed
        yield "engines killed", self.engines_killed
        yield "verifications", self.verified
        yield "dataspaces", self.dataspaces
        yield "events in the log", self.events
        yield "deeds", sum(self.lives.deeds.values())
        for deed, count in sorted(self.lives.deeds.items()):
            yield f"  {deed}", count
        yield "seconds", f"{self.seconds:.1f}"
        yield "Shmem of the host, bytes", f"{self.shmem_delta:+}"
