"""Who may use a vCPU's page: one serving thread at a time, and nobody once it is closed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from vmm_client.errors import Busy, Closed


class Serving:
    """A context manager for the thread that serves. `close` may come from any thread: the page is
    released at once, or when the one who serves it leaves."""

    __slots__ = ("_lock", "_name", "_release", "closed", "released")

    def __init__(self, name: str, release: Callable[[], None]) -> None:
        self.closed = False
        self.released = False
        self._name = name
        self._release = release
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        """Raises Busy, Closed."""
        if not self._lock.acquire(blocking=False):
            raise Closed(self._name) if self.closed else Busy(self._name)
        if self.closed:
            self._lock.release()
            self._finish()
            raise Closed(self._name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()
        if self.closed:
            self._finish()

    def close(self) -> None:
        """No thread begins to serve any more."""
        self.closed = True
        self._finish()

    def _finish(self) -> None:
        # Whoever gets the lock releases the page, and keeps the lock for ever: it happens once.
        if self._lock.acquire(blocking=False):
            self.released = True
            self._release()
