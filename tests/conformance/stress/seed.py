"""The seed of the random tests: VMSESSION_SEED, which a failure prints."""

from __future__ import annotations

import os
import random

VARIABLE = "VMSESSION_SEED"


def seed(default: int | None = None) -> int:
    """From the environment; else the default, or any where there is none. Printed."""
    given = os.environ.get(VARIABLE, "")
    chosen = int(given, 0) if given else default
    chosen = random.SystemRandom().getrandbits(32) if chosen is None else chosen
    print(f"{VARIABLE}={chosen}")
    return chosen
