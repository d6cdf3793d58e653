"""Core's end of the channel to one engine: packets out, packets in, never blocking the loop."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from core_service.engine.protocol import PACKET_LIMIT
from core_service.in_flight import FOR_NOW

PACKETS_AT_ONCE: Final = 32  # before other work of the loop gets its turn


class Channel:
    """Owns the socket. `arrived` gets each packet; `lost` is called once, when the engine's end is
    gone; `unsent` gets a packet whose fd the kernel does not take now."""

    def __init__(
        self,
        connection: socket.socket,
        arrived: Callable[[bytes], None],
        lost: Callable[[], None],
        unsent: Callable[[bytes, OSError], None],
    ) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._arrived = arrived
        self._lost = lost
        self._unsent = unsent
        self._waiting: deque[tuple[bytes, int | None]] = deque()
        asyncio.get_running_loop().add_reader(connection.fileno(), self._readable)

    def send(self, packet: bytes, fd: int | None = None) -> None:
        """Send a packet, now or as soon as there is room; nowhere once the channel is closed. Takes
        ownership of the fd."""
        if self._connection.fileno() < 0:
            _close(fd)
            return
        self._waiting.append((packet, fd))
        if len(self._waiting) == 1:
            self._flush()

    def close(self) -> None:
        """Close the socket, which tells the engine to end. Calling it again does nothing."""
        if self._connection.fileno() < 0:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._connection.fileno())
        loop.remove_writer(self._connection.fileno())
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # a keeper may have the socket, too
        self._connection.close()
        while self._waiting:
            _close(self._waiting.popleft()[1])

    @property
    def descriptor(self) -> int:
        """The fd of the socket."""
        return self._connection.fileno()

    def drain(self) -> None:
        """Take the packets that arrived and were not read yet: the peer's last words."""
        if self._connection.fileno() >= 0:
            self._readable()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            packet, fd = self._waiting[0]
            try:
                socket.send_fds(self._connection, [packet], [] if fd is None else [fd])
            except (BlockingIOError, InterruptedError):
                loop.add_writer(self._connection.fileno(), self._flush)
                return
            except OSError as error:
                if fd is None or error.errno not in FOR_NOW:
                    self.close()
                    self._lost()
                    return
                self._unsent(packet, error)
            self._waiting.popleft()
            _close(fd)
        loop.remove_writer(self._connection.fileno())

    def _readable(self) -> None:
        for _ in range(PACKETS_AT_ONCE):
            try:
                packet = self._connection.recv(PACKET_LIMIT + 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                packet = b""
            if not packet:
                self.close()
                self._lost()
                return
            self._arrived(packet)
            if self._connection.fileno() < 0:
                return


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
