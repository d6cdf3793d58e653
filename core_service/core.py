"""Core: everything it keeps, and what happens to it when a client ends or core stops."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from core_service.adoption import Adoption
from core_service.allotment import allotted
from core_service.audit import AuditFailure, AuditLog, Query
from core_service.audit.fold import MEMORY
from core_service.audit.watch import News
from core_service.cgroups import Cgroups
from core_service.clients import Clients
from core_service.dataspaces import Dataspaces, holder
from core_service.drain import Drain
from core_service.engine.catalog import Catalog
from core_service.kept import Kept
from core_service.life import Life, Phase
from core_service.logs import about
from core_service.names import Names
from core_service.policy import Policy, SessionLimits
from core_service.policy.policy import default_policy
from core_service.readers import Readers
from core_service.refusal import Refusal, invalid, not_found, shortened
from core_service.roms import Roms
from core_service.session import CAPABILITY_QUOTA, RAM_QUOTA, Session, check_label
from core_service.shares import Shares
from core_service.tickets import Tickets
from core_service.users import Users
from dataspace.errors import OutOfCaps, OutOfRam
from dataspace.ledger import Ledger
from dataspace.quota import Account, Amount
from dataspace.record import EventKind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping

    from core_service.client import Client
    from core_service.dataspaces import Dataspace
    from core_service.engine.process import EngineProcess
    from core_service.keeper.client import Record
    from core_service.settings import Settings
    from core_service.vcpu import Vcpu

log = structlog.get_logger()

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Core:
    """The service without its sockets: clients, sessions, dataspaces, engines. Owns the audit log."""

    def __init__(
        self,
        settings: Settings,
        audit: AuditLog,
        policy: Policy | None = None,
        kept: Kept | None = None,
        cgroups: Cgroups | None = None,
    ) -> None:
        self.settings = settings
        self.cgroups = cgroups or Cgroups()
        self.policy = policy or default_policy(settings)
        self.kept = kept or Kept()
        self.audit = audit
        self.news = News(audit)
        self.readers = Readers()
        self._past = Query(audit.directory)
        self.names = Names(lambda name: bool(self._past.history(name, limit=1)))
        self.users = Users(self.policy)
        self.ledger = Ledger(
            audit.append,
            history=settings.history,
            revision=audit.last_revision,
            boot_id=BOOT_ID.read_text().strip(),
        )
        self.dataspaces = Dataspaces(self.ledger, self.users, self.kept)
        self.shares = Shares(self.dataspaces, self.names)
        self.roms = Roms(self.dataspaces, self.names)
        self.clients = Clients(
            settings,
            self.policy,
            self.kept,
            self.users,
            self.names,
            self._client_admitted,
            self._reclaim_soon,
        )
        self.tickets = Tickets(settings.ticket_life)
        self.engines = Catalog(settings, self.cgroups)
        self.sessions: dict[str, Session] = {}
        self.life = Life()
        self.drain = Drain(self.life, self.users)
        self.on_client_end: Callable[[Client], None] = lambda client: None
        self._reclaiming: set[asyncio.Task[None]] = set()

    async def begin(self, records: Mapping[str, Record] | None = None) -> None:
        """Before anybody is served: take over what the keeper has (`records`); what else lived in an
        earlier core is lost. Raises AuditFailure.
        """
        self.kept.format()
        self.adoption = adoption = Adoption(self, records or {})
        adopted = adoption.take_over()
        self.cgroups.clear(self.sessions)
        self.cgroups.must_do_for(self.policy)
        for name, kind in self.audit.alive():
            if (name, kind) not in adopted:
                detail = {"kind": kind}
                self.ledger.note(EventKind.LOST, name, cause="lost at crash", detail=detail)
        myself = f"{os.geteuid()}:{os.getegid()}:{os.getpid()}"
        started = {"kind": "core", "holder": myself}
        if self.policy.digest:
            started |= {"policy": str(self.settings.policy), "digest": self.policy.digest}
        self.ledger.note(EventKind.STARTED, self.names.core, detail=started)
        await adoption.complete()
        await self.everything_recorded()
        for each in self._past.totals():
            if each.kind in MEMORY:
                self.dataspaces.created[each.uid] += each.created
                self.dataspaces.freed[each.uid] += each.ended

    def heed(self, policy: Policy) -> None:
        """Another policy, for whoever is here and whoever comes. Nothing that exists is taken away.

        Raises what the ledger's sink raises; then nothing changed."""
        detail = {"kind": "core", "file": str(self.settings.policy), "digest": policy.digest}
        self.ledger.note(EventKind.POLICY, self.names.core, cause="SIGHUP", detail=detail)
        self.policy = policy
        self.cgroups.must_do_for(policy)
        self.users.limit_to(policy)
        self.clients.limit_to(policy)

    async def everything_recorded(self) -> None:
        """Return when all that happened so far is on disk, and kept for the next core. Raises
        AuditFailure."""
        await self.audit.recorded(self.ledger.revision)
        await self.kept.flushed()

    def must_record(self, client: Client) -> None:
        """Before a client makes anything. Raises AuditFailure if it could not be recorded, Refusal
        SHUTTING_DOWN to who came when core drained already."""
        if client.late:
            raise Refusal("SHUTTING_DOWN", "core takes no new clients; retry with the next one")
        self.audit.require()
        self._put_on_record(client)

    def _client_admitted(self, client: Client) -> None:
        """One that comes while the log cannot be written may look and free, and is on record with the
        first thing that it makes."""
        client.late = self.life.draining
        with suppress(AuditFailure):
            self._put_on_record(client)

    def _put_on_record(self, client: Client) -> None:
        if not client.on_record:
            who = holder(client)
            self.ledger.note(
                EventKind.OPENED,
                client.name,
                actor=who,
                cause="connected",
                detail={"kind": "client", "holder": who},
            )
            client.on_record = True

    # -- sessions

    async def create_session(  # noqa: PLR0913, PLR0917 - what a session can be asked for
        self,
        client: Client,
        label: str,
        engine: str,
        ram: int,
        capabilities: int,
        priority: int | None = None,
        affinity: Collection[int] = (),
    ) -> Session:
        """Start an engine and make a session of it. Raises Refusal, OutOfRam, OutOfCaps."""
        check_label(label)
        if self.life.draining:
            raise Refusal("SHUTTING_DOWN", "core takes no new sessions; retry with the next one")
        client.must_live()
        quota = _session_quota(client.account, ram, capabilities)
        limits = self._session_limits(client, label, engine)
        allotment = allotted(limits, priority, affinity)
        self.users.open_session(client.identity.uid, label, limits)
        name = self.names.new("sessions")
        try:
            with client.account.charged(caps=1):
                process = await self.engines.start(engine, limits.engines, name, allotment)
                await self._put_session_on_record(name, label, client, process)
        except BaseException:
            self.users.close_session(client.identity.uid, label)
            raise
        account = Account(name, quota.ram, quota.caps, client.account)
        session = Session(name, label, client, account, process, self.dataspaces, allotment)
        session.vcpu_limit = limits.vcpus
        self.sessions[name] = client.sessions[name] = session
        process.on_end = lambda why: self.engine_ended(session, why)
        self.kept.session(session)
        about(client, session=name)
        log.info("session opened", engine=process.name, engine_pid=process.pid)
        if client.reclaimed or self.life.stopping:
            await self.close_session(session, "client ended")
            client.must_live()
        return session

    def _session_limits(self, client: Client, label: str, engine: str) -> SessionLimits:
        """What policy says of a session. Raises Refusal DENIED."""
        limits = self.policy.session(client.identity, label)
        if limits is None:
            why = f"policy lets your user have no session with the label {label!r}"
            raise Refusal("DENIED", why, why=why)
        if engine and limits.engines is not None and engine not in limits.engines:
            allowed = ", ".join(limits.engines) or "none"
            why = f"policy lets this session not have engine {shortened(engine)!r}: {allowed}"
            raise Refusal("DENIED", why, why=why)
        return limits

    async def _put_session_on_record(
        self, name: str, label: str, client: Client, process: EngineProcess
    ) -> None:
        who = holder(client)
        try:
            self.ledger.note(
                EventKind.OPENED,
                name,
                actor=who,
                cause="CreateSession",
                detail={
                    "kind": "session",
                    "holder": who,
                    "engine": process.name,
                    "engine_pid": process.pid,
                },
                label=label,
            )
        except BaseException:
            await process.stop()
            raise

    async def close_session(self, session: Session, cause: str, actor: str = "") -> None:
        """End a session and forget it."""
        about(session.client, session=session.name)
        await session.close(cause, actor)
        if self.sessions.pop(session.name, None):
            del session.client.sessions[session.name]
            session.client.account.refund(caps=1)
            self.users.close_session(session.client.identity.uid, session.label)

    def session_of(self, client: Client, name: str) -> Session:
        """A client's session. Raises Refusal NOT_FOUND, ENGINE_DIED."""
        session = client.sessions.get(name)
        if session is None or (session.engine.died is None and session.closing):
            why = client.death_of(name)
            raise Refusal("ENGINE_DIED", why, why=why) if why else not_found(name)
        if session.engine.died:
            raise Refusal("ENGINE_DIED", session.engine.died, why=session.engine.died)
        return session

    def vcpu_of(self, client: Client, name: str) -> tuple[Session, Vcpu]:
        """A client's vCPU with its session. Raises Refusal NOT_FOUND, ENGINE_DIED."""
        session_name, separator, index = name.partition("/vcpus/")
        if not separator:
            raise not_found(name)
        session = self.session_of(client, session_name)
        return session, session.vcpu(index)

    def engine_ended(self, session: Session, why: str) -> None:
        """An engine died of itself: its session goes, everything else stays."""
        about(session.client, session=session.name)
        log.warning("engine ended", why=why)
        session.client.session_died(session.name, why)
        self._in_background(self.close_session(session, f"engine ended: {why}"))

    def measured(self, name: str) -> tuple[int, int]:
        """Bytes of a dataspace that are backed by memory now, and those that are its if what several
        share is divided; 0 once it is gone."""
        dataspace = self.dataspaces.all.get(name)
        view = dataspace.memory if dataspace else None
        return (view.committed(), view.proportional()) if view else (0, 0)

    @property
    def quiet(self) -> bool:
        """Whether no change is under way, of a client or of core."""
        changing = self._reclaiming or self.engines.surveying
        return not changing and not any(client.busy for client in self.clients)

    # -- fds

    def hand_out(self, client: Client, request: str) -> int:
        """A new fd for the fd channel; the caller closes it. Raises Refusal, DataspaceError."""
        name, _, rights = request.partition(" ")
        if rights not in {"", "read-only"}:
            raise invalid("rights", rights, "nothing, or read-only")
        dataspace = self._collectable(client, name)
        writable = dataspace.memory.writable and not rights
        self.must_record(client)
        fd = dataspace.memory.hand_out(writable)
        try:
            self.ledger.hand_out(name, writable, actor=holder(client), cause="fd channel")
        except BaseException:
            os.close(fd)
            raise
        return fd

    async def may_leave(self, client: Client, request: str) -> None:
        """Before the fd that `hand_out` opened leaves core: wait until that is on record.

        Raises Refusal: AUDIT_FAILURE, or what `hand_out` does if it was freed or taken back meanwhile.
        """
        await self.everything_recorded()
        self._collectable(client, request.partition(" ")[0])

    def _collectable(self, client: Client, name: str) -> Dataspace:
        return self._page(client, name) if "/vcpus/" in name else self.dataspaces.of(client, name)

    def _page(self, client: Client, name: str) -> Dataspace:
        _, vcpu = self.vcpu_of(client, name)
        if vcpu.page is None:
            raise Refusal("WRONG_TRANSPORT", f"{name} has no page: it has the stream transport")
        return vcpu.page

    # -- the end of clients and of core

    def _reclaim_soon(self, client: Client, cause: str) -> None:
        self.on_client_end(client)
        self._in_background(self._reclaim(client, cause))

    async def _reclaim(self, client: Client, cause: str) -> None:
        """vCPUs, then mappings, then memory, then quota."""
        about(client)
        await client.settled()
        sessions = list(client.sessions.values())
        await asyncio.gather(*(self.close_session(session, cause) for session in sessions))
        for dataspace in list(client.dataspaces.values()):
            await self.dataspaces.end(dataspace, cause)
        client.requests.forget()
        self.kept.drop(client.name)
        self.users.close_client(client.identity.uid, client.account)
        if client.on_record:
            self.ledger.note(EventKind.CLOSED, client.name, cause=cause)

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._reclaiming.add(task)
        task.add_done_callback(self._background_done)

    def _background_done(self, task: asyncio.Task[None]) -> None:
        self._reclaiming.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("reclaiming failed", exc_info=error)

    async def hand_over(self) -> None:
        """End, and leave everything to the next core: its keeper has it."""
        self.life.reach(Phase.STOPPING)
        await asyncio.gather(*(client.settled() for client in self.clients))
        while self._reclaiming:
            await asyncio.wait(self._reclaiming)
        self.ledger.note(EventKind.STOPPED, self.names.core, cause="core hands over")
        await self.kept.flushed()
        await self._close_log()

    async def _close_log(self) -> None:
        try:
            await asyncio.to_thread(self.audit.close)
        except AuditFailure as failure:
            log.error("audit log is not complete", why=str(failure))  # noqa: TRY400 - no defect
        self.news.close()
        self.readers.close()

    async def stop(self) -> None:
        """End all clients, and wait until nothing of them is left."""
        self.life.reach(Phase.STOPPING)
        self.drain.close()
        self.clients.end_all("core stops")
        while self._reclaiming:
            await asyncio.wait(self._reclaiming)
        self.tickets.close()
        self.dataspaces.close()
        await self.engines.close()
        await self.cgroups.close()
        self.ledger.note(EventKind.STOPPED, self.names.core, cause="core stops")
        await self._close_log()


def _session_quota(account: Account, ram: int, capabilities: int) -> Amount:
    """What was asked for, or the defaults. Raises OutOfRam, OutOfCaps for more than the client's limit,
    which a session could never use."""
    limits, used = account.limits, account.used
    if ram > limits.ram:
        raise OutOfRam(ram, used.ram, limits.ram, account.label)
    if capabilities > limits.caps:
        raise OutOfCaps(capabilities, used.caps, limits.caps, account.label)
    return Amount(
        ram or min(RAM_QUOTA, limits.ram), capabilities or min(CAPABILITY_QUOTA, limits.caps)
    )
