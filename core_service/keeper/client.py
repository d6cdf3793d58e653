"""Core's side of its keeper: what is put there outlives core.

A packet that the kernel took is the keeper's to read, whatever becomes of core. So a mutation may be
answered once nothing waits here (`flushed`). A keeper that is gone, or does not read, is replaced, and
gets everything again: it is never waited for longer than that takes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import structlog

from core_service.keeper.wire import packed, peer, receive

log = structlog.get_logger()

SOCKET: Final = "keeper.sock"
STUCK: Final = 5.0  # seconds that a keeper may take until it reads
HAND_BACK: Final = 30.0
SEND_BUFFER: Final = 4 << 20

Record = tuple[Any, list[int]]


class KeeperError(Exception):
    """The keeper of an earlier core cannot be asked; the text says what to do."""


class Keeper:
    """Owns the connection, and the keeper process as far as core started it. One event loop. `inherited`
    tells that an earlier core left something."""

    def __init__(self, directory: Path, seconds: float) -> None:
        self._path = directory / SOCKET
        self._seconds = seconds
        self._connection: socket.socket | None = None
        self._pid = 0
        self._started = False  # by this core, which must reap it
        self._put: dict[str, tuple[bytes, tuple[int, ...]]] = {}
        self._found: set[str] = set()  # and not put again
        self.inherited = False
        self._waiting: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._empty = asyncio.Event()
        self._empty.set()
        self._stuck: asyncio.TimerHandle | None = None

    def find(self) -> dict[str, Record]:
        """What the keeper of an earlier core holds, if there is one: the caller owns the fds. Blocks.

        Raises KeeperError, OSError.
        """
        connection = _connected(self._path)
        if connection is None:
            return {}
        try:
            found = self._told(connection)
        except TimeoutError:
            keeper, _ = peer(connection)
            connection.close()
            raise KeeperError(
                f"the keeper, process {keeper}, does not answer: continue it (kill -CONT {keeper}), or "
                f"kill it, which ends the virtual machines that it holds"
            ) from None
        except BaseException:
            connection.close()
            raise
        self._attach(connection)
        self._send(packed({"op": "keep", "seconds": self._seconds}), ())
        self._found = set(found)
        self.inherited = bool(found)
        return found

    def _told(self, connection: socket.socket) -> dict[str, Record]:
        found: dict[str, Record] = {}
        while received := receive(connection):
            message, fds = received
            if message["op"] == "ready":
                self._pid = message["pid"]
                return found
            found[message["key"]] = message["value"], fds
        raise ConnectionResetError(f"the keeper at {self._path} ended")

    def start(self) -> None:
        """Have a keeper, if `find` found none. Raises OSError."""
        if self._connection is None:
            self._start()

    def put(self, key: str, value: Any, *fds: int) -> None:
        """Keep a record with these fds, which stay open here until it is dropped."""
        packet = packed({"op": "put", "key": key, "value": value})
        self._put[key] = packet, fds
        self._found.discard(key)
        self._send(packet, fds)

    def drop(self, key: str) -> None:
        """Keep a record no more; one that is not there is no error."""
        if self._put.pop(key, None) or key in self._found:
            self._found.discard(key)
            self._send(packed({"op": "drop", "key": key}), ())

    def forget_found(self) -> None:
        """Keep no more of what `find` found and nobody put again."""
        for key in self._found:
            self._send(packed({"op": "drop", "key": key}), ())
        self._found.clear()

    @property
    def connected(self) -> bool:
        """Whether there is one."""
        return self._connection is not None

    @property
    def keys(self) -> frozenset[str]:
        """What is kept."""
        return frozenset(self._put)

    async def flushed(self) -> None:
        """Return when everything so far would survive the end of core."""
        while not self._empty.is_set():
            await self._empty.wait()

    async def end(self) -> None:
        """End the keeper, and what only it holds; core has ended everything itself."""
        self._put.clear()
        self._send(packed({"op": "end"}), ())
        with suppress(TimeoutError):
            async with asyncio.timeout(STUCK):
                await self.flushed()
        self.close()
        self._reap()

    def close(self) -> None:
        """Leave everything to the keeper: core ends without its objects' ends."""
        if self._connection:
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
            asyncio.get_running_loop().remove_writer(self._connection.fileno())
            self._connection.close()
            self._connection = None
        if self._stuck:
            self._stuck.cancel()
            self._stuck = None
        self._forget_waiting()

    def _start(self) -> None:
        with suppress(FileNotFoundError):
            self._path.unlink()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            old = os.umask(0o177)
            try:
                listening.bind(os.fspath(self._path))
            finally:
                os.umask(old)
            listening.listen(1)
            self._pid = _spawn(self._path, self._seconds, listening.fileno())
            self._started = True
        connection = _connected(self._path)
        if connection is None:
            raise ConnectionRefusedError(f"the keeper at {self._path} did not start")
        self._attach(connection)

    def _attach(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        connection.setblocking(False)
        self._connection = connection
        asyncio.get_running_loop().add_reader(connection.fileno(), self._readable)

    def _send(self, packet: bytes, fds: tuple[int, ...]) -> None:
        if self._connection is None:
            return
        if self._waiting or not self._sent(packet, fds):
            self._waiting.append((packet, tuple(os.dup(fd) for fd in fds)))
            self._empty.clear()
            self._await_room()

    def _sent(self, packet: bytes, fds: tuple[int, ...]) -> bool:
        assert self._connection
        try:
            socket.send_fds(self._connection, [packet], fds)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            # what cannot be told now is told to the next keeper
            asyncio.get_running_loop().call_soon(self._replace, f"cannot be reached: {error}")
        return True

    def _await_room(self) -> None:
        assert self._connection
        loop = asyncio.get_running_loop()
        loop.add_writer(self._connection.fileno(), self._writable)
        if self._stuck is None:
            self._stuck = loop.call_later(STUCK, self._replace, "does not read")

    def _writable(self) -> None:
        assert self._connection
        while self._waiting and self._sent(*self._waiting[0]):
            for fd in self._waiting.popleft()[1]:
                os.close(fd)
        if not self._waiting:
            asyncio.get_running_loop().remove_writer(self._connection.fileno())
            if self._stuck:
                self._stuck.cancel()
                self._stuck = None
            self._empty.set()

    def _readable(self) -> None:
        """A keeper that was just started says that it is ready; else this is its end."""
        assert self._connection
        with suppress(BlockingIOError):
            if receive(self._connection) is None:
                self._replace("it ended")

    def _replace(self, why: str) -> None:
        """Another keeper gets everything. Without one core goes on, and what it has ends with it."""
        if self._connection is None:
            return
        log.error("the keeper is replaced", why=why)
        self._kill()
        self.close()
        try:
            self._start()
        except OSError as error:
            log.error("no keeper: virtual machines end with core", why=str(error))  # noqa: TRY400
            return
        for packet, fds in self._put.values():
            self._send(packet, fds)

    def _kill(self) -> None:
        """The keeper at the other end, whoever started it: it still has its end of the connection, or
        is our child, so its id is its own."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        self._reap()

    def _reap(self) -> None:
        if self._started:
            os.waitpid(self._pid, 0)
            self._started = False

    def _forget_waiting(self) -> None:
        for _, fds in self._waiting:
            for fd in fds:
                os.close(fd)
        self._waiting.clear()
        self._empty.set()


def _connected(path: Path) -> socket.socket | None:
    """A connection to the keeper, which must be of our own user; None if there is none."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(HAND_BACK)
    try:
        connection.connect(os.fspath(path))
        if peer(connection)[1] == os.geteuid():
            return connection
    except (FileNotFoundError, ConnectionRefusedError):
        pass
    connection.close()
    return None


def _spawn(path: Path, seconds: float, listening: int) -> int:
    """Start the keeper in a session of its own; what it prints goes to core's log. Raises OSError."""
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "core_service.keeper", os.fspath(path), str(seconds)],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, 2, 1),
            (os.POSIX_SPAWN_DUP2, listening, 3),
        ],
        setsid=True,
        setsigmask=[],
    )
