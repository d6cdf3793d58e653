"""Dataspaces as core keeps them: a view of a memory, its holder, its charge, its record.

Freed memory that somebody still holds stays charged, to the user who held it, until the lease
probe says that it is gone: once, however many dataspaces he had of it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

import structlog

from core_service.engine.protocol import MEMORY_NAME
from core_service.kept import Kept
from core_service.refusal import invalid, not_found
from dataspace.errors import NotWritable, StillWritable
from dataspace.memory import ram
from dataspace.record import DataspaceKind, EventKind
from dataspace.view import View

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from core_service.client import Client
    from core_service.session import Session
    from core_service.shares import Share
    from core_service.users import Users
    from dataspace.ledger import Ledger
    from dataspace.memory import Memory
    from dataspace.quota import Account

log = structlog.get_logger()

SIZE_LIMIT: Final = 1 << 46
PROBE_INTERVAL: Final = 0.25
PROBES_AT_ONCE: Final = 1000  # at 3 us each
MADE_BY: Final[dict[DataspaceKind, str]] = {
    "ram": "CreateDataspace",
    "rom": "CreateRom",
    "vcpu_page": "CreateVcpu",
    "share": "AcceptShare",
}


@dataclass(eq=False)
class Dataspace:
    """A memory object of a client. `sessions` are those where it is attached now, `shares` the offers of
    it by name; `origin` is what it is a share of. `sealed` tells that its owner had core freeze it;
    `changing` is held to seal or end it."""

    name: str
    kind: DataspaceKind
    memory: View
    account: Account
    client: Client
    origin: Dataspace | None = None
    sessions: set[Session] = field(default_factory=set)
    shares: dict[str, Share] = field(default_factory=dict)
    sealed: bool = False
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    ending: asyncio.Future[bool] | None = None

    @property
    def uid(self) -> int:
        """The user who answers for it."""
        return self.client.identity.uid

    @property
    def size(self) -> int:
        """Bytes, whole pages."""
        return self.memory.size

    @property
    def all_views(self) -> list[Dataspace]:
        """Every dataspace that is a view of the same memory and is not gone: the owner's first."""
        owned = self.origin or self
        accepted = [share.accepted for share in owned.shares.values() if share.accepted]
        return [owned, *(each for each in accepted if each.ending is None)]

    def attached_writable(self) -> Session | None:
        """A session whose guest may write to it."""
        return next((each for each in self.sessions if each.memory.may_write(self)), None)


class Dataspaces:
    """Creates and frees dataspaces, and keeps the ledger of them. `all` are those that are charged, by
    name, whoever holds them; `created` and `freed` count by user what ever was."""

    def __init__(self, ledger: Ledger, users: Users, kept: Kept | None = None) -> None:
        self.ledger = ledger
        self.kept = kept or Kept()
        self._users = users
        self.before_end: Callable[[Dataspace, str, str], Awaitable[None]] = _nothing
        self.all: dict[str, Dataspace] = {}
        self.created: Counter[int] = Counter()
        self.freed: Counter[int] = Counter()
        self._held: dict[str, Dataspace] = {}
        self._answered_for: set[tuple[Memory, int]] = set()  # by a user, with one of `_held`
        self._probing: asyncio.TimerHandle | None = None

    def create(self, client: Client, name: str, size: int) -> Dataspace:
        """RAM for a client. Raises Refusal INVALID_ARGUMENT, OutOfRam, OutOfCaps, MemoryFailure."""
        if not 0 < size <= SIZE_LIMIT:
            raise invalid("size", size, f"between 1 and {SIZE_LIMIT} bytes")
        dataspace = self.allocate(name, "ram", size, client.account, client)
        client.dataspaces[name] = dataspace
        return dataspace

    def allocate(  # noqa: PLR0913, PLR0917 - the fields of a record
        self,
        name: str,
        kind: DataspaceKind,
        size: int,
        account: Account,
        client: Client,
        label: str = "",
    ) -> Dataspace:
        """Memory of `size` bytes, charged to `account` with one capability, and on record."""
        size = -(-size // 4096) * 4096
        with account.charged(ram=size, caps=1):
            memory = ram(size, memory_name(name), sealable=kind == "ram")
            return self.record(Dataspace(name, kind, View(memory), account, client), label)

    def record(self, made: Dataspace, label: str = "") -> Dataspace:
        """Put what was made and charged on record; its memory is closed if that fails."""
        origin = made.origin.name if made.origin else ""
        who = holder(made.client)
        try:
            self.ledger.create(
                made.name,
                made.kind,
                made.size,
                who,
                origin=origin,
                actor=who,
                cause=MADE_BY[made.kind],
                label=label,
            )
        except BaseException:
            made.memory.close()
            raise
        self.all[made.name] = made
        self.created[made.uid] += 1
        self.kept.dataspace(made)
        return made

    def resume(self, dataspace: Dataspace, *, held: bool) -> None:
        """Go on with a dataspace of an earlier core, in use whether the quota covers it or not."""
        dataspace.account.take_over(ram=dataspace.size, caps=1)
        self.all[dataspace.name] = dataspace
        if held:
            self._held[dataspace.name] = dataspace
            self._answered_for.add((dataspace.memory.memory, dataspace.uid))
            self._probe_later()
        self.kept.dataspace(dataspace, held=held)

    @staticmethod
    def of(client: Client, name: str) -> Dataspace:
        """A client's dataspace. Raises Refusal NOT_FOUND."""
        dataspace = client.dataspaces.get(name)
        if dataspace is None or dataspace.ending:
            raise not_found(name)
        return dataspace

    async def seal(self, client: Client, name: str) -> Dataspace:
        """Freeze the content of RAM for good. Raises Refusal NOT_FOUND, NotWritable, StillWritable."""
        dataspace = self.of(client, name)
        if dataspace.kind != "ram":
            raise NotWritable(name)
        async with dataspace.changing:
            self.of(client, name)
            if dataspace.sealed:
                return dataspace
            for each in dataspace.all_views:
                _must_not_write(each, client)
            await asyncio.to_thread(dataspace.memory.memory.seal)
            self.ledger.seal(name, actor=holder(client), cause="SealDataspace")
            dataspace.sealed = True
            self.kept.dataspace(dataspace)
            return dataspace

    async def written(self, dataspace: Dataspace, offset: int, size: int) -> None:
        """Part of a dataspace was written: tell the engines of all who hold the memory."""
        first = dataspace.memory.offset + offset
        await asyncio.gather(
            *(
                session.memory.written(each, first - each.memory.offset, size)
                for each in dataspace.all_views
                for session in list(each.sessions)
            )
        )

    async def end(self, dataspace: Dataspace, cause: str, actor: str = "") -> bool:
        """Unmap a dataspace everywhere, those who have shares of it first, and free it; True if somebody
        still holds the memory. Whoever asks while it ends waits for the same end."""
        if dataspace.ending is None:
            ending = self._end(dataspace, cause, actor)
            dataspace.ending = asyncio.get_running_loop().create_task(ending)
        return await asyncio.shield(dataspace.ending)

    async def _end(self, dataspace: Dataspace, cause: str, actor: str) -> bool:
        async with dataspace.changing:
            await self.before_end(dataspace, cause, actor)
            sessions = list(dataspace.sessions)
            await asyncio.gather(
                *(each.detach_dataspace(dataspace, cause, actor) for each in sessions)
            )
            held = self.dispose(dataspace, cause, actor)
        del dataspace.client.dataspaces[dataspace.name]
        return held

    def dispose(self, dataspace: Dataspace, cause: str, actor: str = "") -> bool:
        """End a dataspace that is mapped nowhere; True if it is held by somebody."""
        held = dataspace.memory.held()
        answer = dataspace.memory.memory, dataspace.uid
        if not held or answer in self._answered_for:
            self.ledger.free(dataspace.name, cause, actor=actor)
            self._refund(dataspace)
            return held
        self.ledger.hold(dataspace.name, cause, actor=actor)
        self._charge_user(dataspace)
        self._held[dataspace.name] = dataspace
        self._answered_for.add(answer)
        self.kept.dataspace(dataspace, held=True)
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
            self._answered_for.discard((dataspace.memory.memory, dataspace.uid))
            self._refund(dataspace)
            self._users.let_go(dataspace.uid)

    def close(self) -> None:
        """Core stops: give up what is still held, by whom it is not known."""
        if self._probing:
            self._probing.cancel()
            self._probing = None
        self.probe()
        for dataspace in self._held.values():
            self.ledger.note(
                EventKind.LOST,
                dataspace.name,
                cause="core stops",
                detail={"kind": dataspace.kind},
            )

    def is_held(self, dataspace: Dataspace) -> bool:
        """Whether its owner freed it, and somebody else has not let go."""
        return dataspace.name in self._held

    def _refund(self, dataspace: Dataspace) -> None:
        del self.all[dataspace.name]
        self.kept.no_dataspace(dataspace)
        self.freed[dataspace.uid] += 1
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


async def _nothing(dataspace: Dataspace, cause: str, actor: str) -> None:
    """What comes before the end of a dataspace that nobody shares."""


def _must_not_write(dataspace: Dataspace, asking: Client) -> None:
    """Raises StillWritable while a session may write. The sessions of others have no names here."""
    session = dataspace.attached_writable()
    if session is None:
        return
    if session.client is asking:
        why = f"attached writable in {session.name}"
        raise StillWritable(dataspace.name, why, session=session.name)
    why = f"attached writable by {holder(session.client)}, who has a share of it"
    raise StillWritable(dataspace.name, why)


def memory_name(name: str) -> str:
    """A dataspace's memory in /proc/PID/maps."""
    return f"{MEMORY_NAME}{name}"


def holder(client: Client) -> str:
    """A client as the ledger names it: `uid:gid:pid`."""
    identity = client.identity
    return f"{identity.uid}:{identity.gid}:{identity.pid}"


def uid_of(holder: str) -> int:
    """The user of a client as the ledger names it."""
    return int(holder.partition(":")[0])
