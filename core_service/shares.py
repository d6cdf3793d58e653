"""Shares: offers of memory to other clients, and what those who accept make of them.

Each holder is charged in full and has a dataspace of his own, with a life of its own; only the memory
is the same. The owner can take it back at any time: what his offer became is then unmapped and freed
before he is answered. Nothing that a receiver does ends more than his own part.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core_service.dataspaces import Dataspace, holder
from core_service.identity import distinction
from core_service.names import age_order
from core_service.refusal import Refusal, not_found
from dataspace.errors import InvalidDataspace, NotWritable
from dataspace.ranges import part_size
from dataspace.record import EventKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from core_service.client import Client
    from core_service.dataspaces import Dataspaces
    from core_service.names import Names
    from dataspace.record import Detail


@dataclass(eq=False)
class Share:
    """An offer of `size` bytes from `offset` of a dataspace to a user, or to one process of his if `pid`
    is not 0: the one that had this pid when it was made, by what tells it from later ones (`started`).
    It can be accepted once; `accepted` stays what it became, also when that is gone."""

    name: str
    dataspace: Dataspace
    uid: int
    pid: int
    started: int
    offset: int
    size: int
    writable: bool
    accepted: Dataspace | None = None

    @property
    def owner(self) -> Client:
        """Who offers it."""
        return self.dataspace.client

    def is_for(self, client: Client) -> bool:
        """Whether a client may accept it."""
        identity = client.identity
        if identity.uid != self.uid or self.pid not in {0, identity.pid}:
            return False
        return not self.started or self.started == identity.started


class Shares:
    """All offers. One capability of its owner is charged for each."""

    def __init__(self, dataspaces: Dataspaces, names: Names) -> None:
        self._dataspaces = dataspaces
        self._names = names
        self._all: dict[str, Share] = {}
        self._by_uid: dict[int, dict[str, Share]] = {}
        dataspaces.before_end = self._owner_ends

    def __iter__(self) -> Iterator[Share]:
        """Those that can be accepted or revoked."""
        return iter(tuple(self._all.values()))

    def offer(  # noqa: PLR0913, PLR0917 - the fields of an offer
        self,
        client: Client,
        dataspace: Dataspace,
        uid: int,
        pid: int,
        offset: int,
        size: int,
        writable: bool,
    ) -> Share:
        """Offer a part of a dataspace. Raises InvalidDataspace, NotWritable, OutOfCaps."""
        if dataspace.origin:
            raise InvalidDataspace("is a share itself", name=dataspace.name)
        size = part_size(dataspace.size, offset, size)
        if writable and not dataspace.memory.writable:
            raise NotWritable(dataspace.name)
        with client.account.charged(caps=1):
            name = self._names.new("shares")
            started = distinction(pid) if pid else 0
            share = Share(name, dataspace, uid, pid, started, offset, size, writable)
            self._dataspaces.ledger.note(
                EventKind.SHARED,
                name,
                actor=holder(client),
                cause="ShareDataspace",
                detail={
                    "dataspace": dataspace.name,
                    "uid": uid,
                    "pid": pid,
                    "offset": offset,
                    "size": size,
                    "writable": writable,
                },
            )
        self._know(share)
        return share

    def resume(self, share: Share) -> None:
        """Go on with an offer of an earlier core."""
        share.owner.account.take_over(caps=1)
        self._know(share)

    def _know(self, share: Share) -> None:
        self._all[share.name] = share.dataspace.shares[share.name] = share
        self._by_uid.setdefault(share.uid, {})[share.name] = share
        self._dataspaces.kept.share(share)

    def accept(self, client: Client, name: str) -> Dataspace:
        """Make a dataspace of an offer.

        Raises Refusal NOT_FOUND, ALREADY_EXISTS; OutOfRam, OutOfCaps.
        """
        share = self._all.get(name)
        if share is None or not share.is_for(client):
            raise not_found(name)
        if share.accepted:
            raise Refusal("ALREADY_EXISTS", f"{name} was accepted before", name=name)
        with client.account.charged(ram=share.size, caps=1):
            made = self._dataspaces.record(
                Dataspace(
                    self._names.new("dataspaces"),
                    "share",
                    share.dataspace.memory.share(share.offset, share.size, writable=share.writable),
                    client.account,
                    client,
                    origin=share.dataspace,
                )
            )
        self._note_accepted(share, made)
        share.accepted = client.dataspaces[made.name] = made
        self._dataspaces.kept.share(share)
        return made

    def _note_accepted(self, share: Share, made: Dataspace) -> None:
        """The offer is its owner's, who is to know what became of it."""
        who, detail = holder(made.client), {"dataspace": made.name}
        try:
            self._dataspaces.ledger.note(
                EventKind.ACCEPTED, share.name, actor=who, cause="AcceptShare", detail=detail
            )
        except BaseException:
            self._dataspaces.dispose(made, "offer could not be accepted")
            raise

    async def revoke(self, client: Client, name: str) -> bool:
        """Take an offer back, and end what the receiver made of it; True if the receiver still holds the
        memory. Raises Refusal NOT_FOUND."""
        share = self._all.get(name)
        if share is None or share.owner is not client:
            raise not_found(name)
        return await self._withdraw(share, "share revoked", holder(client))

    def visible_to(self, client: Client) -> list[Share]:
        """The offers made by a client, and those made to it, in the order of their making."""
        made = (
            share
            for each in client.dataspaces.values()
            for share in each.shares.values()
            if share.name in self._all
        )
        offered = self._by_uid.get(client.identity.uid, {}).values()
        seen = {share.name: share for share in made}
        seen |= {share.name: share for share in offered if share.is_for(client)}
        return sorted(seen.values(), key=lambda share: age_order(share.name))

    async def _owner_ends(self, dataspace: Dataspace, cause: str, actor: str) -> None:
        """The owner's end is the end of every share, whether he asked for it or not."""
        cause = "its owner freed it" if actor else f"its owner's ended: {cause}"
        shares = list(dataspace.shares.values())
        await asyncio.gather(*(self._withdraw(share, cause, actor) for share in shares))

    async def _withdraw(self, share: Share, cause: str, actor: str) -> bool:
        """From the first step on nobody can accept it. The owner's dataspace knows it until what became
        of it is gone: who frees that meanwhile waits for it, too."""
        accepted = share.accepted
        if self._all.pop(share.name, None):
            self._forget_receiver(share)
            detail: Detail = {"dataspace": share.dataspace.name, "uid": share.uid}
            self._dataspaces.ledger.note(
                EventKind.REVOKED, share.name, actor=actor, cause=cause, detail=detail
            )
            share.owner.account.refund(caps=1)
            self._dataspaces.kept.drop(f"share:{share.name}")
        held = accepted is not None and await self._dataspaces.end(accepted, cause, actor)
        share.dataspace.shares.pop(share.name, None)
        return held

    def _forget_receiver(self, share: Share) -> None:
        offered = self._by_uid[share.uid]
        del offered[share.name]
        if not offered:
            del self._by_uid[share.uid]
