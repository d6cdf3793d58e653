"""Two clients of two users, one of whom shares memory with the other."""

from __future__ import annotations

from core_service.client import Client
from core_service.dataspaces import Dataspace, holder
from core_service.session import Session
from core_service.shares import Share
from tests.unit.core_in_process import PAGE, InProcess

SIZE = 4 * PAGE


class Pair:
    """An owner of four pages and one to share them with, each with a session."""

    def __init__(self, world: InProcess) -> None:
        self.world = world
        self.owner, self.receiver = world.client(1000), world.client(1001)
        self.dataspace = world.dataspace(self.owner, SIZE)

    def offer(self, offset: int = 0, size: int = 0, *, writable: bool = True) -> Share:
        """To the receiver's user."""
        return self.world.core.shares.offer(
            self.owner, self.dataspace, 1001, 0, offset, size, writable
        )

    def shared(self, offset: int = 0, size: int = 0, *, writable: bool = True) -> Dataspace:
        """An offer that was accepted."""
        share = self.offer(offset, size, writable=writable)
        return self.world.core.shares.accept(self.receiver, share.name)

    async def attached(self, dataspace: Dataspace, *, read_only: bool = False) -> Session:
        """A new session of its holder, where it is attached."""
        session = await self.world.session(dataspace.client)
        await session.memory.attach(dataspace, 0, 0, 0, read_only=read_only)
        return session

    def collect(self, dataspace: Dataspace, rights: str = "") -> int:
        """An fd, as its holder collects it."""
        return self.world.core.hand_out(dataspace.client, f"{dataspace.name}{rights}")

    async def free(self, dataspace: Dataspace) -> bool:
        """As its holder does."""
        return await self.world.core.dataspaces.end(
            dataspace, "freed by its owner", holder(dataspace.client)
        )

    async def revoke(self, dataspace: Dataspace) -> bool:
        """By the owner, what became of his offer."""
        (share,) = (
            share for share in self.dataspace.shares.values() if share.accepted is dataspace
        )
        return await self.world.core.shares.revoke(self.owner, share.name)

    def charged(self, client: Client) -> tuple[int, int]:
        """Bytes and capabilities."""
        return client.account.used.ram, client.account.used.caps


def ledger_state(pair: Pair, dataspace: Dataspace) -> str:
    return str(pair.world.core.ledger.record(dataspace.name).state)
