"""The front door: the public socket, where the kernel tells who connects.

gRPC in Python knows nothing of a UNIX peer. So core accepts here itself, reads SO_PEERCRED, and
splices the bytes to the inner gRPC socket from an end that it binds to a unique abstract name; the
servicer finds the client by `context.peer()`. Nobody else can use such a name, since the inner socket
lies in a directory of mode 0700, nor take the next one, since nobody can guess it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Final, cast

import structlog

from core_service.clients import Clients
from core_service.identity import Identity, peer
from core_service.listener import Listener
from core_service.seldom import Seldom

log = structlog.get_logger()

BACKLOG: Final = 4096  # the system's net.core.somaxconn bounds it further


class FrontDoor:
    """Accepts on the public socket and splices to the inner one."""

    def __init__(self, clients: Clients, inner: Path) -> None:
        self._clients = clients
        self._inner = inner
        self._numbers = count(1)
        self._by_user: Counter[int] = Counter()
        self._open: set[_Outside] = set()
        self._seldom = Seldom()
        self._listener = Listener(self._arrived)
        self._entering: set[asyncio.Task[None]] = set()

    def open(self, listening: socket.socket) -> None:
        """Begin to accept on a bound socket, which this takes over."""
        listening.listen(BACKLOG)
        self._listener.open(listening)

    def stop_accepting(self) -> None:
        """Let nobody in any more. Calling it again does nothing."""
        self._listener.close()

    def _arrived(self, connection: socket.socket) -> None:
        entering = asyncio.get_running_loop().create_task(self._enter(connection))
        self._entering.add(entering)
        entering.add_done_callback(self._entering.discard)

    async def _enter(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: _Outside(self), connection)
        except OSError as error:
            log.warning("cannot serve a connection", error=str(error))
            connection.close()

    def close(self) -> None:
        """Stop accepting and drop all connections."""
        self.stop_accepting()
        for outside in list(self._open):
            outside.close()

    def drop(self, peers: set[str]) -> None:
        """The process is gone whose connections these are."""
        for outside in [outside for outside in self._open if outside.peer in peers]:
            outside.abort()

    def admit(self, connection: socket.socket) -> Admission | None:
        """Name a new connection, or None when it is not let in."""
        try:
            identity, pidfd = peer(connection)
        except ProcessLookupError:
            return None
        except OSError as error:
            log.warning("cannot admit a connection", error=str(error))
            return None
        if not self._lets_in(identity):
            if pidfd is not None:
                os.close(pidfd)
            return None
        # Nobody can guess it, so nobody has bound it before.
        name = f"vmsession-{next(self._numbers)}-{secrets.token_hex(8)}"
        admission = Admission(self, name, identity)
        self._clients.connected(admission.peer, identity, pidfd)
        self._by_user[identity.uid] += 1
        return admission

    def _lets_in(self, identity: Identity) -> bool:
        limits = self._clients.limits_of(identity)
        most = limits.connections if limits else 0
        if limits is None:
            why = "policy lets no such client in"
        elif self._by_user[identity.uid] >= most:
            why = "too many connections"
        elif not self._clients.room_for(identity, most):
            why = "too many clients"
        else:
            return True
        if self._seldom.due((identity.uid, identity.gid, why)):
            log.warning(why, uid=identity.uid, gid=identity.gid, limit=most)
        return False

    async def splice(self, name: str, outside: _Outside) -> _Inside:
        """Connect to the inner socket under `name`."""
        inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            inner.bind(f"\0{name}")
            loop = asyncio.get_running_loop()
            await loop.sock_connect(inner, os.fspath(self._inner))
            _, inside = await loop.create_connection(lambda: _Inside(outside), sock=inner)
        except BaseException:
            inner.close()
            raise
        return inside

    def entered(self, outside: _Outside) -> None:
        """A connection is open."""
        self._open.add(outside)

    def left(self, outside: _Outside) -> None:
        """It is gone."""
        self._open.discard(outside)

    def forget(self, peer: str, identity: Identity) -> None:
        """An admission ends."""
        self._clients.disconnected(peer)
        self._by_user[identity.uid] -= 1
        if not self._by_user[identity.uid]:
            del self._by_user[identity.uid]


class Admission:
    """A connection that was let in: its inner name, until it ends."""

    def __init__(self, door: FrontDoor, name: str, identity: Identity) -> None:
        self._door = door
        self.name = name
        self.peer = f"unix-abstract:{name}"  # as gRPC shows it
        self._identity = identity

    def end(self) -> None:
        """The connection is gone."""
        self._door.forget(self.peer, self._identity)


class _End(asyncio.Protocol):
    """One end of a splice: what it reads, the other writes, no faster than that can."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _End | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if transport := self._other_transport():
            transport.write(data)

    def pause_writing(self) -> None:
        if transport := self._other_transport():
            transport.pause_reading()

    def resume_writing(self) -> None:
        if transport := self._other_transport():
            transport.resume_reading()

    def _other_transport(self) -> asyncio.Transport | None:
        """The other end's, unless it is not there yet or not any more."""
        transport = self.other.transport if self.other else None
        return None if transport is None or transport.is_closing() else transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self.other:
            self.other.close()

    def close(self) -> None:
        if self.transport:
            self.transport.close()


class _Inside(_End):
    """The end towards the inner gRPC socket."""

    def __init__(self, outside: _Outside) -> None:
        super().__init__()
        self.other = outside


class _Outside(_End):
    """The end towards the client. What arrives before the inner end is there, waits: one read at most,
    since the event loop heeds `pause_reading` only after it began to read."""

    def __init__(self, door: FrontDoor) -> None:
        super().__init__()
        self._door = door
        self._admission: Admission | None = None
        self._splicing: asyncio.Task[None] | None = None
        self._early = bytearray()

    @property
    def peer(self) -> str:
        """Under which name its calls are made; empty if it was not let in."""
        return self._admission.peer if self._admission else ""

    def abort(self) -> None:
        """End it, whether the other side reads or not."""
        if self.transport:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.other:
            super().data_received(data)
        else:
            self._early += data
            if self.transport:
                self.transport.pause_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport
        self._door.entered(self)
        self._admission = self._door.admit(transport.get_extra_info("socket"))
        if self._admission is None:
            self.transport.abort()
            return
        self._splicing = asyncio.get_running_loop().create_task(self._splice(self._admission.name))

    async def _splice(self, name: str) -> None:
        assert self.transport
        try:
            self.other = await self._door.splice(name, self)
        except OSError as error:
            log.warning("cannot splice a connection", error=str(error))
            self.transport.abort()
            return
        if self.transport.is_closing():
            self.other.close()
        elif self._early:
            self.transport.resume_reading()  # first: the write may pause it again
            super().data_received(bytes(self._early))
            self._early.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._door.left(self)
        if self._admission:
            self._admission.end()
            self._admission = None
