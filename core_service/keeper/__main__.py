"""The keeper's process: `python -m core_service.keeper PATH SECONDS`, with the listening socket of PATH
as descriptor 3.

It serves one core at a time: it takes what that core puts, until its connection ends. What a core that
was killed had sent is read to the end before the next core is served. When no core comes within SECONDS,
or core says `end`, it ends, and with it everything that only it held: engines see the end of their
channels, memory is freed.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from core_service.keeper.wire import WireError, packed, peer, receive

LISTENING_FD: Final = 3
PR_SET_DUMPABLE: Final = 4


class Keeper:
    """Owns the records, their fds and the socket."""

    def __init__(self, listening: socket.socket, path: Path, seconds: float) -> None:
        self._listening = listening
        self._path = path
        self._seconds = seconds
        self._records: dict[str, tuple[Any, list[int]]] = {}
        self._ended = False

    def serve(self) -> None:
        """Serve one core after the other until the end."""
        while not self._ended and (core := self._next_core()):
            with core:
                with suppress(OSError):  # it ended already; what it sent is there to be read
                    self._hand_back(core)
                with suppress(WireError, OSError):  # a core that talks nonsense is gone
                    self._take_from(core)
        with suppress(FileNotFoundError):
            self._path.unlink()

    def _next_core(self) -> socket.socket | None:
        """The next one of our own user; None if none comes in time."""
        waiting = select.poll()
        waiting.register(self._listening, select.POLLIN)
        while waiting.poll(self._seconds * 1000):
            core, _ = self._listening.accept()
            if peer(core)[1] == os.geteuid():
                return core
            core.close()
        return None

    def _hand_back(self, core: socket.socket) -> None:
        for key, (value, fds) in self._records.items():
            packet = packed({"op": "put", "key": key, "value": value})
            socket.send_fds(core, [packet], fds)
        core.send(packed({"op": "ready", "pid": os.getpid()}))

    def _take_from(self, core: socket.socket) -> None:
        while not self._ended and (received := receive(core)):
            message, fds = received
            match message.get("op"):
                case "put":
                    self._drop(message["key"])
                    self._records[message["key"]] = message["value"], fds
                case "drop":
                    self._drop(message["key"])
                case "keep":
                    self._seconds = message["seconds"]
                case "end":
                    self._ended = True

    def _drop(self, key: str) -> None:
        _, fds = self._records.pop(key, (None, []))
        for fd in fds:
            os.close(fd)


def main() -> None:
    """The process itself. It is not for others of this user to look into, and no terminal's to end."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(LISTENING_FD, False)
    with socket.socket(fileno=LISTENING_FD) as listening:
        listening.listen(1)  # again, so that SO_PEERCRED names this process
        Keeper(listening, Path(sys.argv[1]), float(sys.argv[2])).serve()


if __name__ == "__main__":
    main()
