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
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from core_service.identity import peer_identity
from core_service.in_flight import FOR_NOW
from core_service.kept import Kept
from core_service.listener import Listener
from core_service.logs import about
from core_service.refusal import Refusal
from dataspace.errors import DataspaceError

if TYPE_CHECKING:
    from core_service.client import Client
    from core_service.clients import Clients
    from core_service.identity import Identity
    from core_service.tickets import Tickets

log = structlog.get_logger()

PACKET_LIMIT: Final = 256
NUMBER_DIGITS: Final = 20  # so that there is room for an answer behind it
UNIDENTIFIED_LIMIT: Final = 64  # connections of one user that have shown no ticket yet
CLIENT_LIMIT: Final = 16  # channels of one client
LOOK_AGAIN: Final = 0.02  # seconds, at a client that asks before it read the last answer

Counted = TypeVar("Counted")
HandOut = Callable[["Client", str], int]
MayLeave = Callable[["Client", str], Awaitable[None]]


class FdChannels:
    """Accepts fd channels. `hand_out(client, request)` opens a new fd for one request; once `may_leave`
    returns, that is on record, and the client may still have it."""

    def __init__(
        self,
        clients: Clients,
        tickets: Tickets,
        hand_out: HandOut,
        may_leave: MayLeave,
        kept: Kept | None = None,
    ) -> None:
        self.clients = clients
        self.tickets = tickets
        self.hand_out = hand_out
        self.may_leave = may_leave
        self._kept = kept or Kept()
        self._last = 0
        self._listener = Listener(self._arrived)
        self._open: set[FdChannel] = set()
        self._unidentified: Counter[int] = Counter()
        self._of_user: Counter[int] = Counter()
        self._of_client: Counter[Client] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def open(self, listening: socket.socket) -> None:
        """Begin to accept on a bound socket, which this takes over."""
        self._listener.open(listening)

    def close(self) -> None:
        """Stop accepting and close all channels: the clients' leases end."""
        self._listener.close()
        for channel in list(self._open):
            channel.close()

    def identified(self, channel: FdChannel, client: Client, connection: socket.socket) -> None:
        """A channel is a client's lease from now on."""
        self._count(self._unidentified, channel.identity.uid, -1)
        self._count(self._of_user, channel.identity.uid, 1)
        self._count(self._of_client, client, 1)
        self._kept.channel(channel.number, client, connection)

    def adopt(self, number: int, client: Client, connection: socket.socket) -> None:
        """Go on with a channel of an earlier core, which is this client's lease."""
        self._last = max(self._last, number)
        self._admit(connection, client.identity, number).belongs_to(client)

    def _admit(self, connection: socket.socket, identity: Identity, number: int) -> FdChannel:
        channel = FdChannel(self, connection, identity, number)
        self._open.add(channel)
        self._count(self._unidentified, identity.uid, 1)
        return channel

    def forget(self, channel: FdChannel) -> None:
        """A channel closed."""
        self._open.discard(channel)
        if channel.client:
            self._count(self._of_user, channel.identity.uid, -1)
            self._count(self._of_client, channel.client, -1)
        else:
            self._count(self._unidentified, channel.identity.uid, -1)
        self._kept.drop(f"channel:{channel.number}")

    def close_of(self, client: Client) -> None:
        """A client is reclaimed: its channels end."""
        for channel in [channel for channel in self._open if channel.client is client]:
            channel.close()

    def full(self, client: Client) -> str:
        """Why a client may have no channel more; empty if it may. Each costs core an fd, and can have
        one more in flight."""
        if self._of_client[client] >= CLIENT_LIMIT:
            return f"a client has at most {CLIENT_LIMIT} channels"
        limits = self.clients.limits_of(client.identity)
        most = limits.connections if limits else CLIENT_LIMIT
        if (used := self._of_user[client.identity.uid]) >= most:
            return f"your user has {used} channels, of {most} at most"
        return ""

    @staticmethod
    def _count(counter: Counter[Counted], what: Counted, more: int) -> None:
        """Those of which there are none are forgotten."""
        counter[what] += more
        if not counter[what]:
            del counter[what]

    def _arrived(self, connection: socket.socket) -> None:
        try:
            identity = peer_identity(connection)
        except OSError as error:
            if not isinstance(error, ProcessLookupError):
                log.warning("cannot accept an fd channel", error=str(error))
            connection.close()
            return
        if self._unidentified[identity.uid] >= UNIDENTIFIED_LIMIT:
            connection.close()
            return
        self._last += 1
        self._admit(connection, identity, self._last)


class FdChannel:
    """One channel: first a ticket, then requests. Owns its connection."""

    def __init__(
        self, channels: FdChannels, connection: socket.socket, identity: Identity, number: int
    ) -> None:
        connection.setblocking(False)
        self.client: Client | None = None
        self.number = number
        self.identity = identity
        self._channels = channels
        self._connection = connection
        loop = asyncio.get_running_loop()
        self._identification = loop.call_later(10, self._unidentified)
        self._sending: asyncio.Task[None] | None = None
        self._looking_again: asyncio.TimerHandle | None = None
        self._start_reading()

    def close(self) -> None:
        """Close the connection; the lease ends with it. Calling it again does nothing."""
        if self._connection.fileno() < 0:
            return
        self._identification.cancel()
        if self._looking_again:
            self._looking_again.cancel()
        asyncio.get_running_loop().remove_reader(self._connection.fileno())
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # a keeper may have the socket, too
        self._connection.close()
        self._channels.forget(self)
        if self.client:
            self.client.release()

    def _unidentified(self) -> None:
        if self.client is None:
            self.close()

    def _readable(self) -> None:
        """The next request is read when the last answer was: nothing tells core when that is."""
        if self.client and self._unread():
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._connection.fileno())
            self._looking_again = loop.call_later(LOOK_AGAIN, self._start_reading)
            return
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
        if client is None or not self._channels.clients.same_process(self.identity, client):
            self.send("error DENIED the ticket is unknown, spent, too old, or another process's")
            self.close()
            return
        if why := self._channels.full(client):
            self.send(f"error OUT_OF_CAPS {why}")
            self.close()
            return
        self.belongs_to(client)
        self.send("ok")

    def belongs_to(self, client: Client) -> None:
        """It is this client's lease from now on."""
        self._channels.identified(self, client, self._connection)
        self.client = client
        client.hold()

    def _answer(self, packet: bytes) -> None:
        assert self.client
        number, request = _numbered(packet.decode("ascii", "replace"))
        try:
            fd = self._channels.hand_out(self.client, request)
        except (Refusal, DataspaceError) as refusal:
            self.send(f"error {number}{refusal.reason} {refusal}")
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._connection.fileno())
        self._sending = loop.create_task(self._send_recorded(fd, self.client, request, number))

    async def _send_recorded(self, fd: int, client: Client, request: str, number: str) -> None:
        """The next request is read when this one is answered. An fd that could not be recorded is on
        record as handed out later, and stays here, as one does whose memory was freed meanwhile."""
        try:
            await self._channels.may_leave(client, request)
            if self._connection.fileno() >= 0:
                socket.send_fds(self._connection, [f"ok {number}".rstrip().encode()], [fd])
        except Refusal as refusal:
            self.send(f"error {number}{refusal.reason} {refusal}")
        except OSError as error:
            about(client)
            log.warning("cannot send an fd", error=str(error))
            if error.errno in FOR_NOW:
                self.send(f"error {number}MEMORY_FAILURE no fd can be sent now: {error.strerror}")
            else:
                self.close()
        finally:
            os.close(fd)
        self._start_reading()

    def _start_reading(self) -> None:
        if self._connection.fileno() >= 0:
            loop = asyncio.get_running_loop()
            loop.add_reader(self._connection.fileno(), self._readable)

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


def _numbered(packet: str) -> tuple[str, str]:
    """The number of a request, to go before what is answered, and the request without it."""
    number, _, request = packet.partition(" ")
    is_number = number.isdecimal() and len(number) <= NUMBER_DIGITS
    return (f"{number} ", request) if is_number else ("", packet)
