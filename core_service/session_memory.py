"""The memory of a session's guest: what is attached where, and the same mapped in its engine."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from core_service.dataspaces import holder
from core_service.engine.protocol import MappingKind
from core_service.refusal import Refusal, not_found
from dataspace.address_map import AddressMap

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from core_service.dataspaces import Dataspace, Dataspaces
    from core_service.engine.protocol import Mapping
    from core_service.session import Session
    from dataspace.attachments import Attachment

    Ranges = Sequence[tuple[int, int]]

MAPPINGS_TO_SPARE: Final = 256
"""How many an engine may have mapped beyond what is attached: enough to tell what is wrong."""
AT_ONCE: Final = 256  # records written before others have their turns


class SessionMemory:
    """Belongs to its session, whose account pays a capability for each attachment. `bytes` are those of
    all attachments."""

    def __init__(self, session: Session, dataspaces: Dataspaces) -> None:
        self._session = session
        self._dataspaces = dataspaces
        self._attached: dict[str, Dataspace] = {}
        self._map = AddressMap(self._plan, self._forget, 1 << session.engine.hello.physical_bits)
        self._planned: list[Attachment] = []
        self.bytes = 0

    def attachments(self) -> list[Attachment]:
        """What is attached, in the order of addresses."""
        return list(self._map)

    def attachments_of(self, dataspace: Dataspace) -> list[Attachment]:
        """Where a dataspace is attached."""
        return list(self._map.of(dataspace.name))

    def attached(self, dataspace: str) -> Dataspace | None:
        """A dataspace that is attached, by its name."""
        return self._attached.get(dataspace)

    @property
    def count(self) -> int:
        """Attachments."""
        return len(self._map)

    async def attach(
        self, dataspace: Dataspace, gpa: int, offset: int, size: int, *, read_only: bool
    ) -> Attachment:
        """Map a part of a dataspace. Raises DataspaceError and Refusal, as Attach documents."""
        async with self._session.changing:
            self._session.must_be_open()
            self._owner_must_have(dataspace)
            writable = dataspace.memory.writable and not read_only
            attachment = self._map.attach(
                dataspace.name, dataspace.size, gpa, offset, size, writable
            )
            if self._planned:
                self._planned.clear()
                await self._map_in_engine(dataspace, attachment)
            return attachment

    async def _map_in_engine(self, dataspace: Dataspace, attachment: Attachment) -> None:
        """The map knows it already; take it back if anything else refuses. The dataspace knows it from
        the start: who frees it meanwhile waits for the outcome."""
        gpa, size = attachment.gpa, attachment.size
        self._attached[dataspace.name] = dataspace
        dataspace.sessions.add(self._session)
        try:
            with self._session.account.charged(caps=1):
                self._record_attached(attachment)
                try:
                    await self._session.engine.map(dataspace.memory, attachment)
                except BaseException:
                    self._record_detached(attachment, "it could not be mapped")
                    raise
                self._dataspaces.kept.attachment(self._session, attachment)
        except BaseException:
            self._map.detach(gpa, size)
            self._forget_unattached(dataspace.name)
            raise

    def resume(self, dataspace: Dataspace, attachment: Attachment) -> None:
        """Go on with what an earlier core attached; nothing if it is the end of another, which that core
        was about to split: the engine tells where."""
        whole = self._map.find(attachment.gpa)
        if whole and whole.end == attachment.end and whole.dataspace == attachment.dataspace:
            return
        self._map.attach(
            attachment.dataspace,
            dataspace.size,
            attachment.gpa,
            attachment.offset,
            attachment.size,
            attachment.writable,
            attachment.executable,
        )
        self._planned.clear()
        self._session.account.take_over(caps=1)
        self._attached[dataspace.name] = dataspace
        dataspace.sessions.add(self._session)
        self.bytes += attachment.size
        self._dataspaces.ledger.resume_attachment(self._session.name, attachment)
        self._dataspaces.kept.attachment(self._session, attachment)

    async def list_mappings(self) -> list[Mapping]:
        """What the engine has mapped, while nothing changes. Raises Refusal."""
        most = 2 * len(self._map) + len(self._session.vcpus) + MAPPINGS_TO_SPARE
        return await self._session.engine.list_mappings(most)

    async def agree_with_engine(self) -> None:
        """What an earlier core ended in the midst of: the engine has a mapping that is not on record any
        more, or not yet, or lacks one that is. Raises Refusal."""
        async with self._session.changing:
            mine = [(each.gpa, each.end) for each in self._map]
            async with self._session.engine.in_time("unmap what is not attached"):
                there = await self._regions()
                for first, end in without(there, mine):
                    await self._session.engine.unmap(first, end - first)
            for first, end in without(mine, there):
                before = len(self._map)
                pieces = self._map.detach(first, end - first)
                self._session.account.take_over(caps=len(self._map))  # a hole leaves one more
                self._session.account.refund(caps=before)
                await self._forget_pieces(pieces, "core ended in the midst of it", "")

    async def _regions(self) -> list[tuple[int, int]]:
        """What the engine has mapped by its own table, in the order of addresses."""
        listed = await self.list_mappings()
        return sorted(
            (each.gpa, each.gpa + each.size) for each in listed if each.kind is MappingKind.REGION
        )

    def _keep_attachments(self, gone: list[Attachment]) -> None:
        """What was unmapped is not kept; what is left of those that it was a part of, is, and before the
        whole is not: the part below takes its place."""
        kept = self._dataspaces.kept
        for piece in gone:
            for end in (piece.end, piece.gpa - 1):
                rest = self._map.find(end) if end >= 0 else None
                if rest and rest.dataspace == piece.dataspace:
                    kept.attachment(self._session, rest)
            kept.no_attachment(self._session, piece.gpa)

    def _record_attached(self, attachment: Attachment) -> None:
        self._dataspaces.ledger.attach(
            attachment.dataspace,
            self._session.name,
            attachment.gpa,
            attachment.size,
            attachment.offset,
            attachment.writable,
            attachment.executable,
            actor=holder(self._session.client),
            cause="Attach",
            label=self._session.label,
        )
        self.bytes += attachment.size

    async def detach(self, gpa: int, size: int) -> list[Attachment]:
        """Unmap exactly a range. Raises InvalidRange, AddressMapFull, OutOfCaps, Refusal."""
        async with self._session.changing:
            self._session.must_be_open()
            before = len(self._map)
            splits = self._would_split(gpa, size)
            with self._session.account.charged(caps=splits):
                pieces = self._map.detach(gpa, size)
            try:
                if pieces:
                    await self._session.engine.unmap(gpa, size)
            finally:  # an engine that did not unmap it ends, and then it is unmapped, too
                await self._forget_pieces(pieces, "Detach", holder(self._session.client))
                self._session.account.refund(caps=before + splits - len(self._map))
            return pieces

    def _would_split(self, gpa: int, size: int) -> bool:
        """Whether a detach leaves one attachment more than there is."""
        first = self._map.find(gpa)
        return first is not None and first.gpa < gpa and gpa + size < first.end

    async def detach_dataspace(self, dataspace: Dataspace, cause: str, actor: str) -> None:
        """Unmap a dataspace wherever it is attached. Raises Refusal."""
        pieces = self._map.detach_dataspace(dataspace.name)
        try:
            for piece in pieces:
                await self._session.engine.unmap(piece.gpa, piece.size)
        finally:
            await self._forget_pieces(pieces, cause, actor)
            self._session.account.refund(caps=len(pieces))

    async def _forget_pieces(self, pieces: list[Attachment], cause: str, actor: str) -> None:
        """They are mapped no more. Many take long: others have their turns meanwhile."""
        self._keep_attachments(pieces)
        for number, piece in enumerate(pieces, 1):
            self._record_detached(piece, cause, actor)
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        for name in {piece.dataspace for piece in pieces}:
            self._forget_unattached(name)

    def _record_detached(self, piece: Attachment, cause: str, actor: str = "") -> None:
        self.bytes -= piece.size
        self._dataspaces.ledger.detach(
            piece.dataspace,
            self._session.name,
            piece.gpa,
            piece.size,
            actor=actor,
            cause=cause,
            label=self._session.label,
        )

    def _forget_unattached(self, dataspace: str) -> None:
        if not self._map.has(dataspace):
            self._attached.pop(dataspace).sessions.discard(self._session)

    async def written(self, dataspace: Dataspace, offset: int, size: int) -> None:
        """Somebody wrote [offset, offset + size) of a dataspace: the engine forgets decoded code. One
        that dies has forgotten it, too."""
        if self._session.closing:
            return
        with suppress(Refusal):
            for attachment in self._map.of(dataspace.name):
                first = max(offset, attachment.offset)
                end = min(offset + size, attachment.offset + attachment.size)
                if first < end:
                    gpa = attachment.gpa + first - attachment.offset
                    await self._session.engine.written(gpa, end - first)

    def may_write(self, dataspace: Dataspace) -> bool:
        """Whether a dataspace is attached writable here."""
        return any(attachment.writable for attachment in self._map.of(dataspace.name))

    @staticmethod
    def _owner_must_have(dataspace: Dataspace) -> None:
        """It may have been freed while this call waited for its turn."""
        if dataspace.ending:
            raise not_found(dataspace.name)

    def _plan(self, attachment: Attachment) -> None:
        self._planned.append(attachment)

    def _forget(self, gpa: int, size: int) -> None:
        """The engine is told once for a whole range, not piece by piece."""

    async def give_back(self, cause: str, actor: str) -> None:
        """The engine ended, and with it what it had mapped."""
        pieces = self._map.detach_all()
        await self._forget_pieces(pieces, cause, actor)
        self._session.account.refund(caps=len(pieces))


def without(ranges: Ranges, others: Ranges) -> Iterator[tuple[int, int]]:
    """The parts of `ranges` that are in none of `others`; both sorted, each without overlaps."""
    for first, end in ranges:
        at = first
        for start, stop in others:
            if stop <= at:
                continue
            if start >= end:
                break
            if at < start:
                yield at, start
            at = stop
        if at < end:
            yield at, end
