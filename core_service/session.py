"""A session: one virtual machine. Its engine, vCPUs, address map and quota, from first to last.

    OPEN ──▶ CLOSING ──▶ CLOSED

A session is made with its engine running, so there is no state before OPEN. Every way out (deleted by
its client, lease ended, engine died, core stops) goes through `close`, once: the engine ends, and with
it vCPUs and mappings; then memory, records and quota follow.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Final

import structlog

from core_service.dataspaces import holder
from core_service.engine.protocol import MalformedPacketError, MappingKind
from core_service.refusal import Refusal, invalid, not_found
from core_service.vcpu import Vcpu
from dataspace.address_map import AddressMap
from dataspace.record import EventKind
from dataspace.vcpu_page import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from core_service.allotment import Allotment
    from core_service.client import Client
    from core_service.dataspaces import Dataspace, Dataspaces
    from core_service.engine.process import EngineProcess
    from core_service.engine.protocol import Exit, Mapping
    from dataspace.attachments import Attachment
    from dataspace.quota import Account
    from dataspace.record import Detail

    Ranges = Sequence[tuple[int, int]]

log = structlog.get_logger()

RAM_QUOTA: Final = 1 << 20
CAPABILITY_QUOTA: Final = 256
MAPPINGS_TO_SPARE: Final = 256
"""How many an engine may have mapped beyond what is attached: enough to tell what is wrong."""
AT_ONCE: Final = 256  # records written before others have their turns


class State(Enum):
    """Where a session is in its life."""

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class Session:
    """One virtual machine. Owns its engine process, its account and its vCPU pages."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts of a session
        self,
        name: str,
        label: str,
        client: Client,
        account: Account,
        engine: EngineProcess,
        dataspaces: Dataspaces,
        allotment: Allotment,
    ) -> None:
        self.name = name
        self.label = label
        self.client = client
        self.account = account
        self.engine = engine
        self.allotment = allotment
        self.created_ns = time.time_ns()
        self.state = State.OPEN
        self.vcpus: dict[int, Vcpu] = {}
        self.attached_bytes = 0
        self.vcpu_limit: int | None = None
        self._dataspaces = dataspaces
        self._attached: dict[str, Dataspace] = {}
        self._map = AddressMap(self._plan, self._forget, 1 << engine.hello.physical_bits)
        self._planned: list[Attachment] = []
        self._mutation = asyncio.Lock()
        self._closing: asyncio.Task[None] | None = None
        engine.on_exit = self._exit_arrived

    @property
    def uid(self) -> int:
        """The user that it belongs to."""
        return self.client.identity.uid

    @property
    def closing(self) -> bool:
        """Whether its end has begun."""
        return self.state is not State.OPEN

    def must_be_open(self) -> None:
        """Refuse what comes too late."""
        if self.state is not State.OPEN:
            raise not_found(self.name)

    def upgrade(self, ram: int, capabilities: int) -> None:
        """Transfer quota from the client. Raises OutOfRam, OutOfCaps; what the ledger's sink raises."""
        self.account.admit_upgrade(ram, capabilities)
        asked = {"ram": ram, "capabilities": capabilities}
        self._note(EventKind.UPGRADED, self.name, "UpgradeQuota", holder(self.client), asked)
        before = self.account.transferred
        self.account.upgrade(ram, capabilities)
        after = self.account.transferred
        self._dataspaces.kept.upgraded(self, after.ram - before.ram, after.caps - before.caps)

    # -- vCPUs

    async def create_vcpu(self, index: int, *, page_transport: bool) -> Vcpu:
        """Create a vCPU. Raises Refusal, OutOfRam, OutOfCaps, MemoryFailure."""
        async with self._mutation:
            self.must_be_open()
            limit = self.engine.hello.max_vcpus
            if index >= limit:
                raise Refusal(
                    "ENGINE_LIMIT",
                    f"vCPU {index}: engine {self.engine.name} has {limit} at most",
                    asked=index,
                    limit=limit,
                )
            name = f"{self.name}/vcpus/{index}"
            if made := self._unclaimed(index, page_transport=page_transport):
                return made
            self._policy_must_allow_vcpu()
            if index in self.vcpus:
                raise Refusal("ALREADY_EXISTS", f"{name} exists", name=name)
            made = await self._make_vcpu(name, index, page_transport)
            log.info("vCPU created", session=self.name, vcpu=str(index))
            return made

    def _policy_must_allow_vcpu(self) -> None:
        used, limit = len(self.vcpus), self.vcpu_limit
        if limit is not None and used >= limit:
            why = f"policy lets this session have {limit} vCPUs at most"
            raise Refusal("OUT_OF_CAPS", why, asked=1, used=used, limit=limit)

    def _unclaimed(self, index: int, *, page_transport: bool) -> Vcpu | None:
        """A vCPU that an earlier core made and could not tell of: who asks again gets it."""
        vcpu = self.vcpus.get(index)
        if vcpu and vcpu.unclaimed and (vcpu.page is not None) is page_transport:
            vcpu.unclaimed = False
            return vcpu
        return None

    async def _make_vcpu(self, name: str, index: int, page_transport: bool) -> Vcpu:
        if not page_transport:
            with self.account.charged(ram=PAGE_BYTES, caps=1):
                return await self._make_in_engine(Vcpu(name, index, None))
        page = self._dataspaces.allocate(
            name, "vcpu_page", PAGE_BYTES, self.account, self.client, self.label
        )
        try:
            return await self._make_in_engine(Vcpu(name, index, page))
        except BaseException:
            self._dataspaces.dispose(page, "vCPU could not be created")
            raise

    def resume_vcpu(self, vcpu: Vcpu) -> None:
        """Go on with a vCPU of an earlier core; its page was resumed."""
        if vcpu.page is None:
            self.account.take_over(ram=PAGE_BYTES, caps=1)
        self.vcpus[vcpu.index] = vcpu
        self._dataspaces.kept.vcpu(vcpu)

    async def agree_on_vcpus(self, cause: str) -> None:
        """A vCPU of an earlier core that ended before the engine made it goes, for `cause`. Raises
        Refusal."""
        for vcpu in list(self.vcpus.values()):
            if not await self.engine.has_vcpu(vcpu.index):
                del self.vcpus[vcpu.index]
                self._give_back_vcpu(vcpu, cause)

    async def _make_in_engine(self, vcpu: Vcpu) -> Vcpu:
        who = holder(self.client)
        self._note(EventKind.OPENED, vcpu.name, "CreateVcpu", who, {"kind": "vcpu", "holder": who})
        self._dataspaces.kept.vcpu(vcpu)
        try:
            await self.engine.create_vcpu(vcpu.index, vcpu.page.memory if vcpu.page else None)
        except BaseException:
            self._note(EventKind.CLOSED, vcpu.name, "vCPU could not be created")
            self._dataspaces.kept.no_vcpu(vcpu)
            raise
        self.vcpus[vcpu.index] = vcpu
        return vcpu

    def _note(
        self,
        kind: EventKind,
        subject: str,
        cause: str,
        actor: str = "",
        detail: Detail | None = None,
    ) -> None:
        self._dataspaces.ledger.note(
            kind, subject, actor=actor, cause=cause, detail=detail, label=self.label
        )

    def vcpu(self, index: str) -> Vcpu:
        """A vCPU by the last part of its name. Raises Refusal NOT_FOUND."""
        vcpu = self.vcpus.get(int(index)) if index.isdecimal() and len(index) < 4 else None
        if vcpu is None or str(vcpu.index) != index:
            raise not_found(f"{self.name}/vcpus/{index}")
        return vcpu

    def _exit_arrived(self, arrived: Exit) -> None:
        vcpu = self.vcpus.get(arrived.index)
        if vcpu is None or vcpu.page:
            raise MalformedPacketError(f"an exit of vCPU {arrived.index}, which has no stream")
        vcpu.exits.publish(arrived)

    # -- memory

    @property
    def changing(self) -> asyncio.Lock:
        """Held to change its attachments and vCPUs."""
        return self._mutation

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
    def attachment_count(self) -> int:
        """How many there are."""
        return len(self._map)

    async def attach(
        self, dataspace: Dataspace, gpa: int, offset: int, size: int, *, read_only: bool
    ) -> Attachment:
        """Map a part of a dataspace. Raises DataspaceError and Refusal, as Attach documents."""
        async with self._mutation:
            self.must_be_open()
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
        dataspace.sessions.add(self)
        try:
            with self.account.charged(caps=1):
                self._record_attached(attachment)
                try:
                    await self.engine.map(dataspace.memory, attachment)
                except BaseException:
                    self._record_detached(attachment, "it could not be mapped")
                    raise
                self._dataspaces.kept.attachment(self, attachment)
        except BaseException:
            self._map.detach(gpa, size)
            self._forget_unattached(dataspace.name)
            raise

    def resume_attachment(self, dataspace: Dataspace, attachment: Attachment) -> None:
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
        self.account.take_over(caps=1)
        self._attached[dataspace.name] = dataspace
        dataspace.sessions.add(self)
        self.attached_bytes += attachment.size
        self._dataspaces.ledger.resume_attachment(self.name, attachment)
        self._dataspaces.kept.attachment(self, attachment)

    async def list_mappings(self) -> list[Mapping]:
        """What the engine has mapped, while nothing changes. Raises Refusal."""
        most = 2 * len(self._map) + len(self.vcpus) + MAPPINGS_TO_SPARE
        return await self.engine.list_mappings(most)

    async def agree_with_engine(self) -> None:
        """What an earlier core ended in the midst of: the engine has a mapping that is not on record any
        more, or not yet, or lacks one that is. Raises Refusal."""
        async with self._mutation:
            mine = [(each.gpa, each.end) for each in self._map]
            async with self.engine.in_time("unmap what is not attached"):
                there = await self._regions()
                for first, end in without(there, mine):
                    await self.engine.unmap(first, end - first)
            for first, end in without(mine, there):
                before = len(self._map)
                pieces = self._map.detach(first, end - first)
                self.account.take_over(caps=len(self._map))  # a hole leaves one more
                self.account.refund(caps=before)
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
                    kept.attachment(self, rest)
            kept.no_attachment(self, piece.gpa)

    def _record_attached(self, attachment: Attachment) -> None:
        self._dataspaces.ledger.attach(
            attachment.dataspace,
            self.name,
            attachment.gpa,
            attachment.size,
            attachment.offset,
            attachment.writable,
            attachment.executable,
            actor=holder(self.client),
            cause="Attach",
            label=self.label,
        )
        self.attached_bytes += attachment.size

    async def detach(self, gpa: int, size: int) -> list[Attachment]:
        """Unmap exactly a range. Raises InvalidRange, AddressMapFull, OutOfCaps, Refusal."""
        async with self._mutation:
            self.must_be_open()
            before = len(self._map)
            splits = self._would_split(gpa, size)
            with self.account.charged(caps=splits):
                pieces = self._map.detach(gpa, size)
            try:
                if pieces:
                    await self.engine.unmap(gpa, size)
            finally:  # an engine that did not unmap it ends, and then it is unmapped, too
                await self._forget_pieces(pieces, "Detach", holder(self.client))
                self.account.refund(caps=before + splits - len(self._map))
            return pieces

    def _would_split(self, gpa: int, size: int) -> bool:
        """Whether a detach leaves one attachment more than there is."""
        first = self._map.find(gpa)
        return first is not None and first.gpa < gpa and gpa + size < first.end

    async def detach_dataspace(self, dataspace: Dataspace, cause: str, actor: str) -> None:
        """Unmap a dataspace wherever it is attached here; where the engine fails, the session ends."""
        try:
            async with self._mutation:
                if self.state is State.OPEN:
                    await self._unmap_dataspace(dataspace, cause, actor)
        except Refusal:
            await self.engine.gone()  # first: who stops it takes its end for one that was asked for
            await self.close(f"engine ended: {self.engine.died}")
        if self.closing:
            await self.closed()

    async def _unmap_dataspace(self, dataspace: Dataspace, cause: str, actor: str) -> None:
        pieces = self._map.detach_dataspace(dataspace.name)
        try:
            for piece in pieces:
                await self.engine.unmap(piece.gpa, piece.size)
        finally:
            await self._forget_pieces(pieces, cause, actor)
            self.account.refund(caps=len(pieces))

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
        self.attached_bytes -= piece.size
        self._dataspaces.ledger.detach(
            piece.dataspace,
            self.name,
            piece.gpa,
            piece.size,
            actor=actor,
            cause=cause,
            label=self.label,
        )

    def _forget_unattached(self, dataspace: str) -> None:
        if not self._map.has(dataspace):
            self._attached.pop(dataspace).sessions.discard(self)

    async def written(self, dataspace: Dataspace, offset: int, size: int) -> None:
        """Somebody wrote [offset, offset + size) of a dataspace: the engine forgets decoded code. One
        that dies has forgotten it, too."""
        if self.state is not State.OPEN:
            return
        with suppress(Refusal):
            for attachment in self._map.of(dataspace.name):
                first = max(offset, attachment.offset)
                end = min(offset + size, attachment.offset + attachment.size)
                if first < end:
                    gpa = attachment.gpa + first - attachment.offset
                    await self.engine.written(gpa, end - first)

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

    # -- the end

    async def close(self, cause: str, actor: str = "") -> None:
        """End the session, whoever asks first; returns when nothing of it is left."""
        if self._closing is None:
            self.state = State.CLOSING
            self._closing = asyncio.get_running_loop().create_task(self._close(cause, actor))
        await self.closed()

    async def closed(self) -> None:
        """Wait for the end of a session that is closing."""
        assert self._closing
        await asyncio.shield(self._closing)

    async def _close(self, cause: str, actor: str) -> None:
        died = self.engine.died
        for vcpu in self.vcpus.values():
            vcpu.exits.end(died or "")
        await self.engine.stop()
        async with self._mutation:  # the one under way fails now, and cleans up after itself
            await self._give_back(cause, actor)
        self.state = State.CLOSED
        log.info("session closed", session=self.name, cause=cause)

    async def _give_back(self, cause: str, actor: str) -> None:
        pieces = self._map.detach_all()
        await self._forget_pieces(pieces, cause, actor)
        self.account.refund(caps=len(pieces))
        for vcpu in self.vcpus.values():
            self._give_back_vcpu(vcpu, cause, actor)
        self.vcpus.clear()
        self.account.close()
        self._note(EventKind.CLOSED, self.name, cause, actor)
        self._dataspaces.kept.drop(self.name)

    def _give_back_vcpu(self, vcpu: Vcpu, cause: str, actor: str = "") -> None:
        self._note(EventKind.CLOSED, vcpu.name, cause, actor)
        self._dataspaces.kept.no_vcpu(vcpu)
        if vcpu.page:
            self._dataspaces.dispose(vcpu.page, cause, actor)
        else:
            self.account.refund(ram=PAGE_BYTES, caps=1)


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


def check_label(label: str) -> None:
    """Raises Refusal INVALID_ARGUMENT for what would garble a terminal or a log."""
    if len(label) > 64 or not (label.isprintable() or not label):
        raise invalid("label", label, "at most 64 printable characters")
