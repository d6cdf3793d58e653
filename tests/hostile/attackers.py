"""Processes that attack a core, each a client of a user of its own.

Such a process is `python -m MODULE SOCKET UID SEED SECONDS MORE...`. At its end it prints JSON:
how many there were of each outcome, and what must not have been.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from tests.hostile.budget import Budget
from tests.integration.running_core import OTHER_USER, ROOT, RunningCore

LATE_SECONDS: Final = 60.0
TOLD: Final = 50
WRITING_FAILED: Final = "Internal error from Core"
"""What grpc.aio says of a request that it could not send on."""


@dataclass
class Findings:
    """Of one attacker."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def tell(self) -> NoReturn:
        """The attacker's last word: it ends as it is, which is core's affair."""
        print(json.dumps([self.outcomes, self.wrong[:TOLD]]), flush=True)
        os._exit(0)


def attack(
    core: RunningCore, module: str, budget: Budget, each: Iterable[tuple[str | Path, ...]]
) -> Counter[str]:
    """One attacker for each tuple of `each`, which is what more it is told, all at once. What they found
    together; nothing may be wrong."""
    attackers = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", module, core.socket, str(OTHER_USER + number)),
                *(f"{budget.seed}/{number}", str(budget.seconds), *more),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number, more in enumerate(each)
    ]
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    try:
        for attacker in attackers:
            told, _ = attacker.communicate(timeout=budget.seconds + LATE_SECONDS)
            counted, found = json.loads(told)
            outcomes.update(counted)
            wrong += found
    finally:
        for attacker in attackers:
            attacker.kill()
            attacker.wait()
    assert wrong == [], "\n".join(wrong)
    return outcomes
