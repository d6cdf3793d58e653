"""The fd channel: where a client collects the file descriptors that it may map, and its lease.

A SOCK_SEQPACKET socket; the protocol stands at `CoreService.OpenFdChannel`. The kernel limits the
fds in flight for core's user as a whole: four clients that do not read would exhaust them for
everybody. So a client gets its next fd only when the kernel says that it read the one before.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog

from core_service.identity import peer_identity
from core_service.refusal import Refusal
from dataspace.errors import DataspaceError

if TYPE_CHECKING:
    from core_service.client import Client
    from core_service.clients import Clients
    from core_service.tickets import Tickets

log = structlog.get_logger()

PACKET_LIMIT: Final = 256
UNIDENTIFIED_LIMIT: Final = 64  # connections that have shown no ticket yet

HandOut = Callable[["Client", str], int]


class FdChannels:
    """Accepts fd channels. `hand_out(client, request)` opens a new fd for one request."""

    def __init__(self, clients: Clients, tickets: Tickets, hand_out: HandOut) -> None:
        self.clients = clients
        self.tickets = tickets
        self.hand_out = hand_out
        self._listening: socket.socket | None = None
        self._open: set[FdChannel] = set()

    def __len__(self) -> int:
        return len(self._open)

    def open(self, listening: socket.socket) -> None:
        """Begin to accept on a bound socket, which this takes over."""
        listening.setblocking(False)
        self._listening = listening
        asyncio.get_running_loop().add_reader(listening.fileno(), self._accept)

    def close(self) -> None:
        """Stop accepting and close all channels: the clients' leases end."""
        if self._listening:
            asyncio.get_running_loop().remove_reader(self._listening.fileno())
            self._listening.close()
            self._listening = None
        for channel in list(self._open):
            channel.close()

    def forget(self, channel: FdChannel) -> None:
        """A channel closed."""
        self._open.discard(channel)

    def close_of(self, client: Client) -> None:
        """A client is reclaimed: its channels end."""
        for channel in [channel for channel in self._open if channel.client is client]:
            channel.close()

    def _accept(self) -> None:
        assert self._listening
        try:
            connection, _ = self._listening.accept()
        except OSError as error:
            log.warning("cannot accept an fd channel", error=str(error))
            return
        unidentified = sum(1 for channel in self._open if channel.client is None)
        if unidentified >= UNIDENTIFIED_LIMIT:
            connection.close()
            return
        self._open.add(FdChannel(self, connection))


class FdChannel:
    """One channel: first a ticket, then requests. Owns its connection."""

    def __init__(self, channels: FdChannels, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.client: Client | None = None
        self._channels = channels
        self._connection = connection
        loop = asyncio.get_running_loop()
        self._identification = loop.call_later(10, self._unidentified)
        loop.add_reader(connection.fileno(), self._readable)

    def close(self) -> None:
        """Close the connection; the lease ends with it. Calling it again does nothing."""
        if self._connection.fileno() < 0:
            return
        self._identification.cancel()
        asyncio.get_running_loop().remove_reader(self._connection.fileno())
        self._connection.close()
        self._channels.forget(self)
        if self.client:
            self.client.release()

    def _unidentified(self) -> None:
        if self.client is None:
            self.close()

    def _readable(self) -> None:
        try:
            packet = self._connection.recv(PACKET_LIMIT + 1)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            packet = b""
        if not packet or len(packet) > PACKET_LIMIT:
            self.close()
        elif self.client is None:
            self._identify(packet)
        else:
            self._answer(packet)

    def _identify(self, packet: bytes) -> None:
        client = self._channels.tickets.spend(packet.decode("ascii", "replace"))
        identity = peer_identity(self._connection)
        if client is None or not self._channels.clients.same_process(identity, client):
            self.send("error DENIED the ticket is unknown, spent, too old, or another process's")
            self.close()
            return
        self.client = client
        client.hold()
        self.send("ok")

    def _answer(self, packet: bytes) -> None:
        assert self.client
        if self._unread():
            self.send("error DENIED read the last answer before the next request")
            return
        try:
            fd = self._channels.hand_out(self.client, packet.decode("ascii", "replace"))
        except (Refusal, DataspaceError) as refusal:
            self.send(f"error {refusal.reason} {refusal}")
            return
        try:
            socket.send_fds(self._connection, [b"ok"], [fd])
        except OSError as error:
            log.warning("cannot send an fd", error=str(error))
            self.close()
        finally:
            os.close(fd)

    def send(self, text: str) -> None:
        """Send a packet, or close the channel of a client that does not read."""
        try:
            self._connection.send(text.encode()[:PACKET_LIMIT])
        except OSError:
            self.close()

    def _unread(self) -> int:
        """Bytes that the client has not read yet (SIOCOUTQ, unix(7): counted until it receives)."""
        raw = fcntl.ioctl(self._connection.fileno(), termios.TIOCOUTQ, bytes(4))
        return int(struct.unpack("i", raw)[0])
