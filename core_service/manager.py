"""The service manager, told how core fares (sd_notify(3)): ready, reloading, stopping, alive.

Nothing depends on it: without one, or with one that does not listen, nothing is sent, and nobody waits.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import Final

from core_service.life import Phase

STATES: Final = {Phase.SERVING: "READY=1", Phase.STOPPING: "STOPPING=1"}


class Manager:
    """Owns the socket towards the service manager. Belongs to one event loop once core serves."""

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        """`address` is a path, or a name in the abstract name space after `@`; empty for no manager.
        `watchdog`: seconds of silence after which the manager takes core for stuck, 0 for never."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._watchdog = watchdog
        self._socket: socket.socket | None = None
        self._beat: asyncio.TimerHandle | None = None
        if address.startswith(("/", "@")):
            kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_UNIX, kind)

    @classmethod
    def of(cls, environment: MutableMapping[str, str]) -> Manager:
        """The one that started this process, if one did. Takes it out of the environment: it is not told
        by children."""
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        for_us = environment.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        known = for_us and microseconds.isascii() and microseconds.isdecimal()
        return cls(address, int(microseconds) / 1e6 if known else 0.0)

    def reached(self, phase: Phase) -> None:
        """Core goes on to a phase. From SERVING on the event loop itself says that it is alive."""
        word = phase.name.lower()
        self._send(STATES.get(phase, ""), f"STATUS={word}", f"MAINPID={os.getpid()}")
        if phase is Phase.SERVING and self._watchdog:
            self._alive()

    def health(self, why_not: str) -> None:
        """What works, for whoever asks the manager; `why_not` is empty when all does."""
        self._send(f"STATUS=serving, but {why_not}" if why_not else "STATUS=serving")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """While the configuration is read again."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            self._send("READY=1")

    def close(self) -> None:
        """Tell nothing more. Calling it again does nothing."""
        if self._beat:
            self._beat.cancel()
            self._beat = None
        if self._socket:
            self._socket.close()
            self._socket = None

    def _alive(self) -> None:
        self._send("WATCHDOG=1")
        loop = asyncio.get_running_loop()
        self._beat = loop.call_later(self._watchdog / 2, self._alive)

    def _send(self, *fields: str) -> None:
        if self._socket is None:
            return
        lines = (field.replace("\n", " ") for field in fields if field)
        with suppress(OSError):
            self._socket.sendto("\n".join(lines).encode(), self._address)
