"""Accepting on a listening socket, in turns with the other work of the event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

import structlog

log = structlog.get_logger()

ACCEPTED_AT_ONCE: Final = 64  # before other work of the loop gets its turn
ACCEPT_AGAIN: Final = 1.0  # seconds after the system had no fd left for a connection


class Listener:
    """Owns a listening socket once it is open. `arrived` is given each connection, and owns it."""

    def __init__(self, arrived: Callable[[socket.socket], None]) -> None:
        self._arrived = arrived
        self._listening: socket.socket | None = None
        self._again: asyncio.TimerHandle | None = None

    def open(self, listening: socket.socket) -> None:
        """Begin to accept."""
        listening.setblocking(False)
        self._listening = listening
        self._start()

    def close(self) -> None:
        """Accept no more. Calling it again does nothing."""
        if self._again:
            self._again.cancel()
        if self._listening:
            asyncio.get_running_loop().remove_reader(self._listening.fileno())
            self._listening.close()
            self._listening = None

    def _start(self) -> None:
        assert self._listening
        asyncio.get_running_loop().add_reader(self._listening.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            if self._listening is None:  # closed for who arrived
                return
            try:
                connection, _ = self._listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # the connection waits, and would wake the loop again at once
                log.warning("cannot accept a connection", error=str(error))
                self._pause(self._listening)
                return
            self._arrived(connection)

    def _pause(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening.fileno())
        self._again = loop.call_later(ACCEPT_AGAIN, self._start)
