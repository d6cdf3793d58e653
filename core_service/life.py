"""Where the service is in its life.

    STARTING ──▶ SERVING ──▶ DRAINING ──▶ STOPPING
                    └────────────────────────▲

It goes forward only, and may leave out steps: a signal stops a core that starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import IntEnum


class Phase(IntEnum):
    """A step of the life; later ones are greater."""

    STARTING = 0
    SERVING = 1
    DRAINING = 2
    STOPPING = 3


class Life:
    """The phase, and who waits for a later one. Belongs to one event loop."""

    def __init__(self) -> None:
        self._phase = Phase.STARTING
        self._reached = {phase: asyncio.Event() for phase in Phase}
        self._callbacks: list[Callable[[Phase], None]] = []

    @property
    def phase(self) -> Phase:
        """The phase now."""
        return self._phase

    @property
    def draining(self) -> bool:
        """Whether nothing new begins any more."""
        return self._phase >= Phase.DRAINING

    @property
    def stopping(self) -> bool:
        """Whether all that there is, is being ended."""
        return self._phase >= Phase.STOPPING

    def reach(self, phase: Phase) -> None:
        """Go on to a phase; nothing happens where that is not forward."""
        if phase <= self._phase:
            return
        self._phase = phase
        for each in Phase:
            if each <= phase:
                self._reached[each].set()
        for callback in self._callbacks:
            callback(phase)

    def on_change(self, callback: Callable[[Phase], None]) -> None:
        """Have `callback` called with each new phase, for the rest of the life."""
        self._callbacks.append(callback)

    async def until(self, phase: Phase) -> None:
        """Return when a phase is reached, or was."""
        await self._reached[phase].wait()
