"""Draining: nothing new begins, what there is may end by itself, and after a stated time core ends it.

Clients that were there go on as before, but open no sessions; one that comes now may look, not make.
Core stops when the last session ended, whatever else clients still hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog

from core_service.life import Life, Phase

if TYPE_CHECKING:
    from core_service.users import Users

log = structlog.get_logger()

DRAIN_LIMIT: Final = 31 * 24 * 3600.0
"""Seconds that can be stated at most."""


class Drain:
    """The drain of one core, begun at most once. Calls `on_over` when nothing is left to wait for."""

    def __init__(self, life: Life, users: Users) -> None:
        self._life = life
        self._users = users
        self.on_over: Callable[[], None] = lambda: None
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._left: int | None = None
        users.on_session_end = self._session_ended

    @property
    def is_over(self) -> bool:
        """Whether core stops: no session is left, the time is over, or a signal said so."""
        return self._left is not None

    @property
    def sessions(self) -> int:
        """Sessions that core still waits for; once it is over, those that core ends."""
        return self._users.sessions.total() if self._left is None else self._left

    @property
    def remaining(self) -> float | None:
        """Seconds until core ends what is left; None without a limit."""
        if self._deadline is None:
            return None
        return max(0.0, self._deadline - asyncio.get_running_loop().time())

    def begin(self, within: float | None) -> None:
        """Drain, for `within` seconds at most. Again: the earlier end counts."""
        if self._life.stopping:
            return
        if not self._life.draining:
            log.info("draining", sessions=self.sessions, within=within)
            self._life.reach(Phase.DRAINING)
        if within is not None:
            self._end_by(asyncio.get_running_loop().time() + within)
        self._session_ended()

    def close(self) -> None:
        """Core stops, whether it drained or not. Calling it again does nothing."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._left is None:
            self._left = self.sessions
            self._tell()

    async def progress(self, seconds: float) -> None:
        """Return when something changed, and after so many seconds anyway."""
        waiting = asyncio.ensure_future(self._changed.wait())
        await asyncio.wait({waiting}, timeout=seconds)
        waiting.cancel()

    def _end_by(self, deadline: float) -> None:
        if self._deadline is not None and self._deadline <= deadline:
            return
        self._deadline = deadline
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(deadline, self._time_is_over)

    def _time_is_over(self) -> None:
        log.warning("time to drain is over", sessions=self.sessions)
        self._finish()

    def _session_ended(self) -> None:
        self._tell()
        if self._life.phase is Phase.DRAINING and not self.sessions:
            self._finish()

    def _finish(self) -> None:
        self.close()
        self.on_over()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
