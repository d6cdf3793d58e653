"""The numbers of a campaign, for people and for programs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Figures:
    """What was done and what came of it. Times in seconds, memory in bytes."""

    campaign: str
    seed: str
    numbers: dict[str, int | float] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)

    def table(self) -> str:
        """One line for each number."""
        rows = [("campaign", self.campaign), ("seed", self.seed)]
        rows += [(name, _told(number)) for name, number in self.numbers.items()]
        rows += [(f"  {outcome}", str(count)) for outcome, count in sorted(self.outcomes.items())]
        return "\n".join(f"{name:<56} {value:>14}" for name, value in rows)

    def publish(self) -> str:
        """Write `hostile.CAMPAIGN.json` into the current directory; returns the table."""
        path = Path(f"hostile.{self.campaign}.json")
        path.write_text(json.dumps(vars(self), indent=2) + "\n")
        return f"\n{self.table()}\nall of it: {path}"


def _told(number: float) -> str:
    return f"{number:.3f}" if isinstance(number, float) else str(number)
