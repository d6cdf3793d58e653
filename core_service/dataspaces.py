"""Dataspaces as core keeps them: memory, its owner, its charge, its record.

Freed memory that somebody still holds stays charged, to the user who held it, until the lease
probe says that it is gone.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

import structlog

from core_service.refusal import invalid, not_found
from dataspace.memory import Memory, ram

if TYPE_CHECKING:
    from core_service.client import Client
    from core_service.session import Session
    from core_service.users import Users
    from dataspace.ledger import Ledger
    from dataspace.quota import Account
    from dataspace.record import DataspaceKind

log = structlog.get_logger()

SIZE_LIMIT: Final = 1 << 46
PROBE_INTERVAL: Final = 0.25
PROBES_AT_ONCE: Final = 1000  # at 3 us each


@dataclass(eq=False)
class Dataspace:
    """A memory object. `sessions` are those where it is attached now."""

    name: str
    memory: Memory
    account: Account
    uid: int
    sessions: set[Session] = field(default_factory=set)

    @property
    def size(self) -> int:
        """Bytes, whole pages."""
        return self.memory.size


class Dataspaces:
    """Creates and frees dataspaces, and keeps the ledger of them."""

    def __init__(self, ledger: Ledger, users: Users) -> None:
        self.ledger = ledger
        self._users = users
        self._held: dict[str, Dataspace] = {}
        self._probing: asyncio.TimerHandle | None = None

    def create(self, client: Client, name: str, size: int) -> Dataspace:
        """RAM for a client. Raises Refusal INVALID_ARGUMENT, OutOfRam, OutOfCaps, MemoryFailure."""
        if not 0 < size <= SIZE_LIMIT:
            raise invalid("size", size, f"between 1 and {SIZE_LIMIT} bytes")
        dataspace = self.allocate(name, "ram", size, client.account, client)
        client.dataspaces[name] = dataspace
        return dataspace

    def allocate(
        self, name: str, kind: DataspaceKind, size: int, account: Account, client: Client
    ) -> Dataspace:
        """Memory of `size` bytes, charged to `account` with one capability, and on record."""
        size = -(-size // 4096) * 4096
        with account.charged(ram=size, caps=1):
            memory = ram(size, f"vmsession:{name}")
            try:
                self.ledger.create(name, kind, size, holder(client), actor=holder(client))
            except BaseException:
                memory.close()
                raise
        return Dataspace(name, memory, account, client.identity.uid)

    @staticmethod
    def of(client: Client, name: str) -> Dataspace:
        """A client's dataspace. Raises Refusal NOT_FOUND."""
        try:
            return client.dataspaces[name]
        except KeyError:
            raise not_found(name) from None

    async def free(self, client: Client, name: str, cause: str) -> bool:
        """Unmap a dataspace everywhere and free it; True if somebody still holds the memory."""
        dataspace = self.of(client, name)
        del client.dataspaces[name]
        for session in list(dataspace.sessions):
            await session.detach_dataspace(dataspace)
        return self.dispose(dataspace, cause, holder(client))

    def dispose(self, dataspace: Dataspace, cause: str, actor: str = "") -> bool:
        """End a dataspace that is mapped nowhere; True if it is held by somebody."""
        if not dataspace.memory.held():
            self.ledger.free(dataspace.name, cause, actor=actor)
            self._refund(dataspace)
            return False
        self.ledger.hold(dataspace.name, cause, actor=actor)
        self._charge_user(dataspace)
        self._held[dataspace.name] = dataspace
        self._probe_later()
        return True

    def probe(self) -> None:
        """Free what nobody holds any more."""
        self._probe(list(self._held.items()))

    def _probe(self, some: list[tuple[str, Dataspace]]) -> None:
        for name, dataspace in some:
            del self._held[name]
            if dataspace.memory.held():
                self._held[name] = dataspace  # behind those that wait for their turn
                continue
            self.ledger.release(name, "the last holder let go")
            self._refund(dataspace)
            self._users.let_go(dataspace.uid)

    def close(self) -> None:
        """Core stops: give up what is still held."""
        if self._probing:
            self._probing.cancel()
            self._probing = None
        self.probe()

    def _refund(self, dataspace: Dataspace) -> None:
        dataspace.memory.close()
        dataspace.account.refund(ram=dataspace.size, caps=1)

    def _charge_user(self, dataspace: Dataspace) -> None:
        """Move the charge from the owner's account, which may close now, to the user's. Quota that was
        transferred to the owner stays with it, so the user's may not cover this."""
        dataspace.account.refund(ram=dataspace.size, caps=1)
        dataspace.account = self._users.account(dataspace.uid)
        dataspace.account.take_over(ram=dataspace.size, caps=1)

    def _probe_later(self) -> None:
        if self._held and not self._probing:
            loop = asyncio.get_running_loop()
            self._probing = loop.call_later(PROBE_INTERVAL, self._probe_now)

    def _probe_now(self) -> None:
        self._probing = None
        self._probe(list(islice(self._held.items(), PROBES_AT_ONCE)))
        self._probe_later()


def holder(client: Client) -> str:
    """A client as the ledger names it: `uid:gid:pid`."""
    identity = client.identity
    return f"{identity.uid}:{identity.gid}:{identity.pid}"


def uid_of(holder: str) -> int:
    """The user of a client as the ledger names it."""
    return int(holder.partition(":")[0])
