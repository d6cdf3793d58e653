"""A session: one virtual machine. Its engine, vCPUs, memory and quota, from first to last.

    OPEN ──▶ CLOSING ──▶ CLOSED

A session is made with its engine running, so there is no state before OPEN. Every way out (deleted by
its client, lease ended, engine died, core stops) goes through `close`, once: the engine ends, and with
it vCPUs and mappings; then memory, records and quota follow.
"""

from __future__ import annotations

import asyncio
import time
from enum import Enum
from typing import TYPE_CHECKING, Final

import structlog

from core_service.dataspaces import holder
from core_service.engine.protocol import MalformedPacketError
from core_service.refusal import Refusal, invalid, not_found
from core_service.session_memory import SessionMemory
from core_service.vcpu import Vcpu
from dataspace.record import EventKind
from dataspace.vcpu_page import PAGE_BYTES

if TYPE_CHECKING:
    from core_service.allotment import Allotment
    from core_service.client import Client
    from core_service.dataspaces import Dataspace, Dataspaces
    from core_service.engine.process import EngineProcess
    from core_service.engine.protocol import Exit
    from dataspace.quota import Account
    from dataspace.record import Detail

log = structlog.get_logger()

RAM_QUOTA: Final = 1 << 20
CAPABILITY_QUOTA: Final = 256


class State(Enum):
    """Where a session is in its life."""

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class Session:
    """One virtual machine. Owns its engine process, its account, its memory and its vCPU pages."""

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
        self.vcpu_limit: int | None = None
        self._dataspaces = dataspaces
        self.memory = SessionMemory(self, dataspaces)
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

    # -- changes

    @property
    def changing(self) -> asyncio.Lock:
        """Held to change its attachments and vCPUs."""
        return self._mutation

    async def detach_dataspace(self, dataspace: Dataspace, cause: str, actor: str) -> None:
        """Unmap a dataspace wherever it is attached here; where the engine fails, the session ends."""
        try:
            async with self._mutation:
                if self.state is State.OPEN:
                    await self.memory.detach_dataspace(dataspace, cause, actor)
        except Refusal:
            await self.engine.gone()  # first: who stops it takes its end for one that was asked for
            await self.close(f"engine ended: {self.engine.died}")
        if self.closing:
            await self.closed()

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
        await self.memory.give_back(cause, actor)
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


def check_label(label: str) -> None:
    """Raises Refusal INVALID_ARGUMENT for what would garble a terminal or a log."""
    if len(label) > 64 or not (label.isprintable() or not label):
        raise invalid("label", label, "at most 64 printable characters")
