"""How long a campaign goes on, and with which choices."""

from __future__ import annotations

import os
import secrets
import time
from random import Random
from typing import Final

SHORT_SEED: Final = "20261123"
SOAK_SECONDS: Final = 120.0


class Budget:
    """Seconds from now on, and a seed. The seed is told, which a failed test shows."""

    def __init__(self, seconds: float, seed: str) -> None:
        self.seconds = seconds
        self.seed = seed
        self._end = time.monotonic() + seconds
        print(f"VMSESSION_SEED={seed}")

    @classmethod
    def short(cls, seconds: float) -> Budget:
        """For every run of the suite: always the same choices."""
        return cls(seconds, SHORT_SEED)

    @classmethod
    def soak(cls) -> Budget:
        """For `make soak`: VMSESSION_SOAK_SECONDS, and VMSESSION_SEED to repeat the choices of a
        campaign, though not the instants."""
        seconds = float(os.environ.get("VMSESSION_SOAK_SECONDS") or SOAK_SECONDS)
        return cls(seconds, os.environ.get("VMSESSION_SEED") or secrets.token_hex(4))

    def chance(self, purpose: object = "") -> Random:
        """Choices of their own for each purpose."""
        return Random(f"{self.seed}/{purpose}")

    @property
    def left(self) -> float:
        """Seconds; negative when it is over."""
        return self._end - time.monotonic()
