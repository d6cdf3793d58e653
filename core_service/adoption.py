"""Adoption: a core goes on with what its keeper has of an earlier one.

The keeper has the memory, the channels of engines and clients, and what each object is; the audit log
has its life so far. What the keeper has and the log has not was made an instant before the end, and is
put on record now. What a request made that was not answered is ended: its client asks again. Engines
say what they have mapped, and are brought in line.

Records may be those of another version of core. One that this core cannot read is given up alone, and so
is what was made of it: each step reads all of its record before it does anything.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import structlog
from google.protobuf import descriptor_pool, message_factory

from core_service.allotment import Allotment
from core_service.audit.fold import MEMORY
from core_service.dataspaces import Dataspace, holder
from core_service.engine import protocol
from core_service.engine.process import EngineProcess
from core_service.identity import Identity
from core_service.kept import FORMAT
from core_service.refusal import Refusal
from core_service.session import Session
from core_service.shares import Share
from core_service.vcpu import Vcpu
from dataspace.address_map import Attachment
from dataspace.errors import OutOfCaps, OutOfRam
from dataspace.life import Life
from dataspace.memory import Memory
from dataspace.quota import Account, Amount
from dataspace.record import EventKind, Stamp
from dataspace.view import View

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from core_service.audit.fold import Life as Past
    from core_service.client import Client
    from core_service.core import Core
    from core_service.keeper.client import Record
    from dataspace.record import Detail

log = structlog.get_logger()

UNANSWERED: Final = "core ended before it was answered"
INCOMPLETE: Final = "a part of it could not be taken over"


class Adoption:
    """Of the records of one keeper, by one core that serves nobody yet. Owns their fds until it took
    them over."""

    def __init__(self, core: Core, records: Mapping[str, Record]) -> None:
        self._core = core
        self._records = dict(records)
        self._past = {(each.name, each.kind in MEMORY): each for each in core.audit.living()}
        self._clients: dict[str, Client] = {}
        self._memories: dict[int, tuple[Memory, View]] = {}
        self._unanswered = {
            attempt
            for attempt in (key.removeprefix("underway:") for key in self._named("underway:"))
            if f"answer:{attempt.rpartition('#')[0]}" not in self._records
        }
        self._ended: list[Client] = []
        self._undone: list[Dataspace | Session | Share] = []
        self._incomplete: set[str] = set()
        self._adopted: set[tuple[str, str]] = set()

    def take_over(self) -> set[tuple[str, str]]:
        """Make objects of the records; the names and kinds of those that go on."""
        self._must_be_ours()
        steps = (
            (self._client, self._named("clients/")),
            (self._session, self._named("sessions/")),
            (self._dataspace, self._dataspaces()),
            (self._share, self._named("share:")),
            (self._vcpu, self._named("vcpu:")),
            (self._attachment, sorted(self._named("attachment:"), key=_gpa)),
            (self._answer, self._named("answer:")),
        )
        for step, names in steps:
            for name in names:
                self._one(step, name)
        if self._adopted:
            log.info("adopted", objects=len(self._adopted), sessions=len(self._core.sessions))
        return self._adopted

    async def complete(self) -> None:
        """Bring engines in line, and end what nobody was told of, and clients that ended."""
        for page in self._pages_without_vcpus():
            self._core.dataspaces.dispose(page, UNANSWERED)
        for name in self._incomplete & self._core.sessions.keys():
            await self._core.close_session(self._core.sessions[name], INCOMPLETE)
        sessions = list(self._core.sessions.values())
        await asyncio.gather(*(agree(session) for session in sessions))
        for undone in self._undone:
            await self._undo(undone)
        for part in self._shares_without_offers():
            await self._core.dataspaces.end(part, UNANSWERED)
        for client in self._ended:
            client.end("client ended while no core ran")

    def close(self) -> None:
        """Give up what nobody took; from now on the keeper has no more than this core."""
        for key, (_, fds) in self._records.items():
            _give_up(key, fds)
        self._records.clear()
        self._core.kept.forget_others()

    def listening(self) -> dict[str, socket.socket]:
        """The sockets where clients connect, by name: they are the taker's."""
        found = {}
        for key in self._named("listening:"):
            _, (fd,) = self._records.pop(key)
            found[key.partition(":")[2]] = socket.socket(fileno=fd)
        return found

    def channels(self) -> Iterator[tuple[int, Client, socket.socket]]:
        """The fd channels that are open, by number, each with its client: they are the taker's."""
        for key in self._named("channel:"):
            value, fds = self._records[key]
            client = self._clients.get(value["client"])
            if client and not client.reclaimed:
                del self._records[key]
                yield int(key.partition(":")[2]), client, socket.socket(fileno=fds[0])

    def _named(self, start: str) -> list[str]:
        return [key for key in self._records if key.startswith(start)]

    def _dataspaces(self) -> list[str]:
        """Owners before those who have shares."""
        return sorted(self._named("memory:"), key=self._is_share)

    def _is_share(self, key: str) -> bool:
        value, _ = self._records[key]
        return isinstance(value, dict) and bool(value.get("origin"))

    def _must_be_ours(self) -> None:
        """Records of another format would be misunderstood: nothing is taken over but the sockets."""
        kept_as, _ = self._records.pop("format", (None, []))
        if not self._records or kept_as == FORMAT:
            return
        log.error("records of another version of core", theirs=kept_as, ours=FORMAT)
        for key in [key for key in self._records if not key.startswith("listening:")]:
            _give_up(key, self._records.pop(key)[1])

    def _one(self, step: Any, key: str) -> None:
        """What cannot be taken over is told, and given up with its fds: the log has it lost. A session
        of which a part is missing ends."""
        value, fds = self._records.pop(key)
        kind, _, rest = key.partition(":")
        try:
            step(rest or key, value, fds)
        except Exception as error:  # of a record of another version: it may be anything
            log.error("cannot adopt", record=key, why=repr(error))  # noqa: TRY400 - told in the log
            _give_up(key, fds)
            if kind == "vcpu":
                self._incomplete.add(rest.partition("/vcpus/")[0])
            elif kind == "attachment":
                self._incomplete.add(rest.rpartition(":")[0])

    def _goes_on(self, name: str, kind: str) -> Past | None:
        """Its life so far, if it is on record."""
        self._core.names.adopt(name)
        self._adopted.add((name, kind))
        return self._past.get((name, kind in MEMORY))

    # -- one kind after the other

    def _client(self, name: str, value: Any, fds: list[int]) -> None:
        identity, ended = Identity(*value["identity"]), value["ended"]
        client = self._core.clients.adopt(name, identity, fds[0] if fds else None)
        client.on_record = self._goes_on(name, "client") is not None
        self._clients[name] = client
        if ended:
            self._ended.append(client)

    def _session(self, name: str, value: Any, fds: list[int]) -> None:
        core, client = self._core, self._clients[value["client"]]
        engine, pid, greeting = value["engine"]
        quota, transferred = Amount(*value["quota"]), self._transferred(value)
        label, created_ns, vcpu_limit = value["label"], value["created_ns"], value["vcpu_limit"]
        attempt = value["request"]
        protocol.parse_hello(bytes.fromhex(greeting))  # of another version: it cannot be spoken to
        channel, pidfd = fds
        allotment = Allotment.resumed(value.get("allotment"))
        process = EngineProcess(
            engine,
            pid,
            pidfd,
            socket.socket(fileno=channel),
            core.settings.engine_stop_limit,
            greeting,
            core.cgroups.adopt(name, allotment),
        )
        core.engines.own(process)
        account = Account(name, quota.ram, quota.caps, client.account)
        with suppress(OutOfRam, OutOfCaps):  # of a policy that is less generous now
            account.upgrade(transferred.ram, transferred.caps)
        client.account.take_over(caps=1)
        core.users.resume_session(client.identity.uid, label)
        session = Session(name, label, client, account, process, core.dataspaces, allotment)
        session.created_ns, session.vcpu_limit = created_ns, vcpu_limit
        core.sessions[name] = client.sessions[name] = session
        process.on_end = lambda why: core.engine_ended(session, why)
        core.kept.session(session)
        who = holder(client)
        if self._goes_on(name, "session") is None:
            detail = {"kind": "session", "holder": who, "engine": engine, "engine_pid": pid}
            core.ledger.note(EventKind.OPENED, name, actor=who, detail=detail, label=session.label)
        core.ledger.note(
            EventKind.ADOPTED, name, cause="core was started anew", label=session.label
        )
        self._unless_answered(attempt, session)

    def _dataspace(self, name: str, value: Any, fds: list[int]) -> None:
        core, client = self._core, self._clients[value["client"]]
        kind, held, of = value["kind"], value["held"], value["origin"]
        sealed, attempt = value["sealed"], value["request"]
        page = kind == "vcpu_page"
        origin = core.dataspaces.all[of] if of and not held else core.dataspaces.all.get(of)
        if held:
            account = core.users.account(client.identity.uid)
        else:
            account = self._session_of(name).account if page else client.account
        view = self._view(value["view"], fds[0])
        made = Dataspace(name, kind, view, account, client, origin=origin, sealed=sealed)
        past = self._goes_on(name, kind)
        if past:
            core.ledger.resume(_life(made, past, held=held, origin=of))
            core.dataspaces.resume(made, held=held)
        else:
            who = holder(client)
            core.ledger.create(name, kind, made.size, who, origin=of, actor=who)
            core.dataspaces.resume(made, held=False)
        if not held and not page:
            client.dataspaces[name] = made
            self._unless_answered(attempt, made)

    def _view(self, described: list[int], fd: int) -> View:
        inode = os.fstat(fd).st_ino
        if inode in self._memories:
            memory, beside = self._memories[inode]
            view = View.resumed(memory, described, beside)
            os.close(fd)
            return view
        memory = Memory.resumed(fd)
        view = View.resumed(memory, described, None)
        self._memories[inode] = memory, view
        return view

    def _share(self, name: str, value: Any, _fds: list[int]) -> None:
        dataspaces = self._core.dataspaces.all
        (uid, pid, started), (offset, size, writable) = value["for"], value["part"]
        of, attempt = dataspaces[value["dataspace"]], value["request"]
        share = Share(name, of, uid, pid, started, offset, size, writable)
        share.accepted = dataspaces.get(value["accepted"])
        self._core.shares.resume(share)
        if self._goes_on(name, "offer") is None:
            detail: Detail = {"dataspace": of.name, "uid": uid, "pid": pid}
            self._core.ledger.note(EventKind.SHARED, name, detail=detail)
        self._unless_answered(attempt, share)

    def _vcpu(self, name: str, value: Any, _fds: list[int]) -> None:
        session, index = self._session_of(name), name.rpartition("/")[2]
        attempt = value["request"]
        page = self._core.dataspaces.all[name] if value["page"] else None
        vcpu = Vcpu(name, int(index), page)
        vcpu.exits.adopt()
        vcpu.unclaimed = attempt in self._unanswered
        session.resume_vcpu(vcpu)
        if self._goes_on(name, "vcpu") is None:
            who = holder(session.client)
            detail = {"kind": "vcpu", "holder": who}
            self._core.ledger.note(EventKind.OPENED, name, actor=who, detail=detail)

    def _attachment(self, place: str, value: Any, _fds: list[int]) -> None:
        session, _, gpa = place.rpartition(":")
        name, offset, size, writable, executable = value
        attachment = Attachment(int(gpa), size, name, offset, writable, executable)
        dataspace = self._core.dataspaces.all[name]
        self._core.sessions[session].memory.resume(dataspace, attachment)

    def _answer(self, key: str, value: Any, _fds: list[int]) -> None:
        owner, kind, request = key.split(":", 2)
        type_name, digest, raw = value
        descriptor = descriptor_pool.Default().FindMessageTypeByName(type_name)
        answer = message_factory.GetMessageClass(descriptor)()
        answer.ParseFromString(base64.b64decode(raw))
        self._clients[owner].requests.resume((kind, request), bytes.fromhex(digest), answer)
        self._core.kept.answer(key, value)

    # -- what was under way

    def _session_of(self, vcpu: str) -> Session:
        return self._core.sessions[vcpu.partition("/vcpus/")[0]]

    def _transferred(self, session: Any) -> Amount:
        """Without what is going to be asked for again."""
        ram, caps = session["transferred"]
        for attempt, more_ram, more_caps in session["upgrades"]:
            if attempt in self._unanswered:
                ram, caps = ram - more_ram, caps - more_caps
        return Amount(ram, caps)

    def _pages_without_vcpus(self) -> list[Dataspace]:
        """Of vCPUs that no engine was asked to make any more, or whose records could not be read."""
        return [
            page
            for name, page in self._core.dataspaces.all.items()
            if page.kind == "vcpu_page"
            and not self._core.dataspaces.is_held(page)
            and not any(vcpu.page is page for vcpu in self._vcpus_beside(name))
        ]

    def _shares_without_offers(self) -> list[Dataspace]:
        """What an offer had become that was being taken back, or became without anybody being told."""
        dataspaces = self._core.dataspaces
        return [
            part
            for part in dataspaces.all.values()
            if part.origin
            and not dataspaces.is_held(part)
            and not any(share.accepted is part for share in part.origin.shares.values())
        ]

    def _vcpus_beside(self, name: str) -> Iterable[Vcpu]:
        session = self._core.sessions.get(name.partition("/vcpus/")[0])
        return session.vcpus.values() if session else ()

    def _unless_answered(self, attempt: str, made: Dataspace | Session | Share) -> None:
        if attempt in self._unanswered:
            self._undone.append(made)

    async def _undo(self, made: Dataspace | Session | Share) -> None:
        if isinstance(made, Session):
            await self._core.close_session(made, UNANSWERED)
        elif isinstance(made, Dataspace):
            origin = made.origin
            await self._core.dataspaces.end(made, UNANSWERED)
            for share in origin.shares.values() if origin else ():
                if share.accepted is made:
                    share.accepted = None
        elif made.name in made.dataspace.shares:
            await self._core.shares.revoke(made.owner, made.name)


async def agree(session: Session) -> None:
    """Bring an engine in line. One that ended meanwhile is seen by its pidfd."""
    with suppress(Refusal):
        async with session.engine.in_time("tell what it has"):
            await session.agree_on_vcpus(UNANSWERED)
            for vcpu in session.vcpus.values():
                if vcpu.page is None:
                    await _find(session, vcpu)
        await session.memory.agree_with_engine()


def _gpa(attachment: str) -> int:
    return int(attachment.rpartition(":")[2])


async def _find(session: Session, vcpu: Vcpu) -> None:
    """Where a vCPU stands whose exits core carries. Raises Refusal."""
    if not await session.engine.resend(vcpu.index, vcpu.exits.runs):
        await session.engine.resend(vcpu.index)
    vcpu.exits.settled()


def _give_up(key: str, fds: list[int]) -> None:
    """Who is at the other end of a socket sees its end, whatever copies there are; an engine ends."""
    for fd in fds:
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                with socket.socket(fileno=os.dup(fd)) as end:
                    end.shutdown(socket.SHUT_RDWR)
            elif key.startswith("sessions/"):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        with suppress(OSError):
            os.close(fd)


def _life(made: Dataspace, past: Past, *, held: bool, origin: str) -> Life:
    created = Stamp(past.created_monotonic_ns, past.created_wall_ns)
    life = Life(
        made.name,
        made.kind,
        made.size,
        holder(made.client),
        created,
        past.revision,
        origin,
        past.label,
    )
    if made.sealed:
        life.seal()
    since = Stamp(0, past.held_wall_ns) if held and past.held_wall_ns else created
    life.resume(past.mappings, past.handed_out, since if held else None, past.cause)
    return life
