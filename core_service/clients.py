"""All clients, and which of them is at the other end of a call."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import structlog

from core_service.client import Client
from core_service.policy.policy import ONLOOKER
from core_service.refusal import Refusal

if TYPE_CHECKING:
    from core_service.identity import Identity
    from core_service.kept import Kept
    from core_service.names import Names
    from core_service.policy import ClientLimits, Policy
    from core_service.settings import Settings
    from core_service.users import Users

log = structlog.get_logger()

Admitted = Callable[[Client], None]
Reclaim = Callable[[Client, str], None]


class Clients:
    """One `Client` for each process, however many connections it has. Before Linux 6.9 a process in
    another PID namespace cannot be told from others of its user: each connection is a client."""

    def __init__(  # noqa: PLR0913, PLR0917 - what core has, and what it wants to know
        self,
        settings: Settings,
        policy: Policy,
        kept: Kept,
        users: Users,
        names: Names,
        admitted: Admitted,
        reclaim: Reclaim,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._kept = kept
        self._users = users
        self._names = names
        self._admitted = admitted
        self._reclaim = reclaim
        self._by_identity: dict[Identity, Client] = {}
        self._by_peer: dict[str, Client] = {}
        self._watches: dict[Client, int] = {}
        self._anonymous: set[Client] = set()
        self.on_process_end: Callable[[set[str]], None] = lambda peers: None

    def __len__(self) -> int:
        return len(self._by_identity) + len(self._anonymous)

    def __iter__(self) -> Iterator[Client]:
        return iter((*self._by_identity.values(), *self._anonymous))

    def of_user(self, uid: int) -> int:
        """How many clients a user has."""
        return sum(1 for client in self if client.identity.uid == uid)

    def limits_of(self, identity: Identity) -> ClientLimits | None:
        """What a process that connects may have; None: it is not let in."""
        return self._policy.client(identity)

    def limit_to(self, policy: Policy) -> None:
        """Heed another policy. Those who are here stay, with what they have: one whom it does not let
        in gets no more."""
        self._policy = policy
        for client in self:
            limits = policy.client(client.identity) or ONLOOKER
            self._users.account(client.identity.uid).limit_to(
                limits.user_ram, limits.user_capabilities
            )
            client.account.limit_to(limits.ram, limits.capabilities)
            client.rom_paths = limits.rom_paths
        for client in {*self, *self._by_peer.values()}:
            client.sight = policy.sight(client.identity)

    @property
    def watched(self) -> int:
        """Clients whose process is watched, by one fd each."""
        return len(self._watches)

    def connected(self, peer: str, identity: Identity, pidfd: int | None) -> Client:
        """A connection arrived, which policy lets in, and gRPC will show as `peer`. Takes ownership of
        the pidfd."""
        client = self._known(identity)
        if client is None:
            client = self._admit(identity, pidfd)
        elif pidfd is not None:
            os.close(pidfd)
        client.connections += 1
        self._by_peer[peer] = client
        return client

    def _known(self, identity: Identity) -> Client | None:
        client = self._by_identity.get(identity) if identity.known else None
        return None if client is None or client.reclaimed else client

    def room_for(self, identity: Identity, most: int) -> bool:
        """Whether it is a client already, or its user has less than `most`, connected or not."""
        return self._known(identity) is not None or self._users.clients_of(identity.uid) < most

    def disconnected(self, peer: str) -> None:
        """The connection behind `peer` is gone."""
        client = self._by_peer.pop(peer, None)
        if client:
            client.connections -= 1
            self._unwatch_if_gone(client)

    def of(self, peer: str) -> Client:
        """The client that makes a call."""
        client = self._by_peer.get(peer)
        if client is None:
            raise Refusal("DENIED", "this connection did not come through the front door", why=peer)
        return client

    def same_process(self, identity: Identity, client: Client) -> bool:
        """Whether a second connection, of `identity`, belongs to this client."""
        return not client.reclaimed and client.identity == identity

    def end_all(self, cause: str) -> None:
        """Core stops."""
        for client in self:
            client.end(cause)

    def _admit(self, identity: Identity, pidfd: int | None) -> Client:
        limits = self.limits_of(identity)
        assert limits, "the front door asked policy"
        client = self._make(self._names.new("clients"), identity, pidfd, limits)
        self._admitted(client)
        told = {
            "client": client.name,
            "uid": identity.uid,
            "gid": identity.gid,
            "pid": identity.pid,
        }
        log.info("client connected", **told)
        return client

    def adopt(self, name: str, identity: Identity, pidfd: int | None) -> Client:
        """A client of an earlier core; one that policy does not let in any more keeps what it has, and
        gets no more."""
        limits = self.limits_of(identity) or ONLOOKER
        return self._make(name, identity, pidfd, limits)

    def _make(
        self, name: str, identity: Identity, pidfd: int | None, limits: ClientLimits
    ) -> Client:
        account = self._users.open_client(identity.uid, limits)
        client = Client(name, identity, account, self._settings.grace, self._ended, self._kept)
        self._kept.client(client, pidfd)
        client.rom_paths = limits.rom_paths
        client.sight = self._policy.sight(identity)
        if identity.known:
            self._by_identity[identity] = client
        else:
            self._anonymous.add(client)
        if pidfd is not None:
            self._watches[client] = pidfd
            asyncio.get_running_loop().add_reader(pidfd, self._process_ended, client)
        return client

    def _process_ended(self, client: Client) -> None:
        """So do its connections, whoever else has them: they were good for its rights."""
        client.end("client process ended")
        self._unwatch(client)
        if client.connections:
            self.on_process_end({peer for peer, of in self._by_peer.items() if of is client})

    def _unwatch_if_gone(self, client: Client) -> None:
        if client.reclaimed and not client.connections:
            self._unwatch(client)

    def _unwatch(self, client: Client) -> None:
        pidfd = self._watches.pop(client, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)

    def _ended(self, client: Client, cause: str) -> None:
        self._kept.client(client, None)
        self._unwatch_if_gone(client)
        if self._by_identity.get(client.identity) is client:
            del self._by_identity[client.identity]
        self._anonymous.discard(client)
        who = client.identity
        log.info("client ended", client=client.name, uid=who.uid, pid=who.pid, cause=cause)
        self._reclaim(client, cause)
