"""What clients can bring about as often as they like is told only now and then: else they could fill the
log, or have the journal drop what matters (RateLimitBurst of journald.conf(5))."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Final

EVERY: Final = 10.0  # seconds
REMEMBERED: Final = 1024


class Seldom:
    """Remembers when each thing was told last, as long as that counts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[Hashable, float] = {}

    def __len__(self) -> int:
        return len(self._told)

    def due(self, what: Hashable) -> bool:
        """Whether it is to be told now, as it then is."""
        now = self._clock()
        if now - self._told.get(what, -EVERY) < EVERY:
            return False
        if len(self._told) >= REMEMBERED:
            self._told = {each: at for each, at in self._told.items() if now - at < EVERY}
        self._told[what] = now
        return True
