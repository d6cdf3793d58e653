"""Clients who share memory, or copy files, to harm each other or core."""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from vmsession.v1 import dataspace_pb2 as pb

from core_service import roms
from core_service.audit import Query
from core_service.audit.query import EventFilter
from core_service.client import TRANSFERS_AT_ONCE, Client
from core_service.dataspaces import Dataspace, holder
from core_service.identity import NOBODY, Identity, distinction
from core_service.refusal import Refusal
from core_service.rpc.dataspace_servicer import DataspaceServicer
from core_service.settings import Settings
from dataspace.errors import InvalidDataspace
from dataspace.memory import Memory, rom_of
from dataspace.record import EventKind
from dataspace.view import View
from tests.unit.core_in_process import PAGE, InProcess, behaviours, in_process, open_fds, until
from tests.unit.core_pair import SIZE, Pair, ledger_state


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[InProcess]:
    """A core, and files for ROMs; nothing must be left of it."""
    before = open_fds()
    (tmp_path / "roms").mkdir()
    (tmp_path / "roms" / "bios").write_bytes(bytes(PAGE))
    settings = Settings(audit_directory=tmp_path / "audit")
    running = in_process(monkeypatch, behaviours(tmp_path, "good", "keeps"), settings)
    yield running
    await running.must_be_empty()
    assert open_fds() == before


@pytest.fixture
async def pair(world: InProcess) -> Pair:
    """An owner and a receiver."""
    return Pair(world)


class Call:
    """What a servicer is told of a call of a client."""

    def __init__(self, client: Client) -> None:
        self._peer = f"peer-{client.identity.pid}"

    def peer(self) -> str:
        """Whose it is."""
        return self._peer

    def add_done_callback(self, _: object) -> None:
        """It ends with the test."""


async def test_nothing_is_read_once_it_is_taken_back(pair: Pair) -> None:
    """Who does not take his answers has calls that wait: they must not outlive the right to read."""
    accepted = pair.shared()
    for _ in range(TRANSFERS_AT_ONCE):
        await pair.receiver.transfers.acquire()
    servicer = DataspaceServicer(pair.world.core)
    request = pb.ReadDataspaceRequest(name=accepted.name, size=PAGE)
    reading = asyncio.create_task(servicer.ReadDataspace(request, cast("Any", Call(pair.receiver))))
    await asyncio.sleep(0)
    assert not await pair.revoke(accepted)
    pair.dataspace.memory.write(0, b"secret")
    pair.receiver.transfers.release()
    with pytest.raises(Refusal) as refused:
        await reading
    assert refused.value.reason == "NOT_FOUND"


async def test_a_view_that_was_given_up_reaches_nothing(pair: Pair) -> None:
    view = pair.shared().memory
    await pair.free(pair.dataspace)
    other = pair.world.dataspace(pair.owner, SIZE).memory
    part = other.share(0, PAGE, writable=True)
    part.close()
    for closed in view, part:
        uses: list[Callable[[View], object]] = [
            lambda view: view.read(0, 1),
            lambda view: view.write(0, b"x"),
            lambda view: view.open(writable=False),
            lambda view: view.hand_out(writable=False),
            lambda view: view.share(0, PAGE, writable=False),
        ]
        for use in uses:
            with pytest.raises(InvalidDataspace, match="is closed"):
                use(closed)


async def test_memory_that_a_user_holds_is_charged_to_him_once(pair: Pair) -> None:
    """However often he accepts and frees it: or he would use up what core has for everybody."""
    fds = []
    for _ in range(3):
        accepted = pair.shared()
        fds.append(pair.collect(accepted))
        assert await pair.free(accepted)
        assert pair.world.core.users.account(1001).used.ram == SIZE
    other_process = pair.world.client(1001)
    accepted = pair.world.core.shares.accept(other_process, pair.offer().name)
    fds.append(pair.collect(accepted))
    assert await pair.free(accepted)
    totals = pair.world.core.ledger.totals()
    assert (totals.held, totals.held_bytes) == (1, SIZE)
    while fds:
        assert pair.world.core.users.account(1001).used.ram == SIZE
        os.close(fds.pop())
        pair.world.core.dataspaces.probe()
    assert pair.world.core.ledger.totals().held == 0


async def test_each_user_who_holds_it_is_charged(pair: Pair) -> None:
    fds, stranger = [], pair.world.client(1002)
    share = pair.world.core.shares.offer(pair.owner, pair.dataspace, 1002, 0, 0, 0, True)
    for accepted in pair.shared(), pair.world.core.shares.accept(stranger, share.name):
        fds.append(pair.collect(accepted))
        assert await pair.free(accepted)
        assert pair.world.core.users.account(accepted.uid).used.ram == SIZE
    for fd in fds:
        os.close(fd)
    pair.world.core.dataspaces.probe()
    assert pair.world.core.users.root.used.ram == SIZE


async def test_a_session_whose_engine_keeps_what_is_taken_back_is_forgotten(pair: Pair) -> None:
    accepted = pair.shared()
    session = await pair.world.session(pair.receiver, "keeps")
    await session.memory.attach(accepted, 0, 0, 0, read_only=False)
    assert not await pair.revoke(accepted)
    await until(lambda: pair.world.core.quiet)
    assert not pair.world.core.sessions
    assert not pair.world.core.users.sessions
    assert pair.charged(pair.receiver) == (0, 0)
    with pytest.raises(Refusal) as refused:
        pair.world.core.session_of(pair.receiver, session.name)
    assert refused.value.reason == "ENGINE_DIED"


@pytest.mark.parametrize("pid", [(1 << 31) - 1, 1 << 31, (1 << 32) - 1])
async def test_an_offer_to_a_pid_that_no_process_can_have_is_for_nobody(
    pair: Pair, pid: int
) -> None:
    share = pair.world.core.shares.offer(pair.owner, pair.dataspace, 1001, pid, 0, 0, True)
    assert share.started == NOBODY
    await pair.world.core.shares.revoke(pair.owner, share.name)


async def test_an_offer_is_not_for_a_later_process_with_the_pid(pair: Pair) -> None:
    pid = os.getpid()
    shares = pair.world.core.shares
    share = shares.offer(pair.owner, pair.dataspace, 1001, pid, 0, 0, True)
    started = distinction(pid)
    connected = pair.world.core.clients.connected
    later = connected("later", Identity(1001, 1001, pid, started + 1), None)
    meant = connected("meant", Identity(1001, 1001, pid, started), None)
    assert not shares.visible_to(later)
    with pytest.raises(Refusal) as refused:
        shares.accept(later, share.name)
    assert refused.value.reason == "NOT_FOUND"
    assert shares.accept(meant, share.name).origin is pair.dataspace


async def test_an_fd_does_not_leave_core_once_it_is_taken_back(pair: Pair) -> None:
    """It is opened, and then put on record: the owner may revoke in between."""
    accepted = pair.shared()
    fd = pair.collect(accepted)
    revoking = asyncio.create_task(pair.revoke(accepted))
    with pytest.raises(Refusal) as refused:
        await pair.world.core.may_leave(pair.receiver, f"{accepted.name} read-only")
    assert refused.value.reason == "NOT_FOUND"
    assert await revoking
    os.close(fd)


async def test_a_seal_of_the_owners_own_is_on_record_when_asked_for(pair: Pair) -> None:
    fd = pair.collect(pair.dataspace)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    os.close(fd)
    for _ in range(2):
        await pair.world.core.dataspaces.seal(pair.owner, pair.dataspace.name)
    assert await kinds(pair, pair.dataspace.name) == ["created", "handed_out", "sealed"]


async def kinds(pair: Pair, name: str) -> list[str]:
    await pair.world.core.everything_recorded()
    found = Query(pair.world.core.audit.directory).history(name)
    return [str(recorded.event.kind) for recorded in found]


async def test_what_ends_with_its_owner_is_not_said_to_be_his_wish(pair: Pair) -> None:
    share = pair.offer()
    accepted = pair.world.core.shares.accept(pair.receiver, share.name)
    pair.owner.end("client process ended")
    await until(lambda: ledger_state(pair, accepted) == "freed")
    await pair.world.core.everything_recorded()
    query = Query(pair.world.core.audit.directory)
    for name, kind in (share.name, EventKind.REVOKED), (accepted.name, EventKind.FREED):
        event = query.history(name)[-1].event
        cause = "its owner's ended: client process ended"
        assert (event.kind, event.actor, event.cause) == (kind, "", cause)


async def test_the_owner_sees_by_whom_an_offer_was_taken(pair: Pair) -> None:
    share, core = pair.offer(), pair.world.core
    made = core.shares.accept(pair.receiver, share.name)
    await core.everything_recorded()
    seen = EventFilter(subject=share.name, uids=[pair.owner.identity.uid])
    offered, taken = Query(core.audit.directory).events(only=seen)
    assert offered.event.kind is EventKind.SHARED
    assert (taken.event.kind, taken.event.actor) == (EventKind.ACCEPTED, holder(pair.receiver))
    assert taken.event.detail == {"dataspace": made.name}


async def test_whom_it_was_offered_to_sees_that_it_is_taken_back(pair: Pair) -> None:
    share = pair.offer()
    await pair.world.core.shares.revoke(pair.owner, share.name)
    await pair.world.core.everything_recorded()
    event = Query(pair.world.core.audit.directory).history(share.name)[-1].event
    assert (event.kind, event.detail["uid"]) == (EventKind.REVOKED, 1001)


class SlowDisk:
    """Files whose copies wait; `copies` are those that began, by name."""

    def __init__(self) -> None:
        self.copies: list[str] = []
        self.may_go_on = threading.Event()

    def copy(self, file: int, length: int, name: str) -> Memory:
        """In place of `rom_of`."""
        self.copies.append(name)
        self.may_go_on.wait(20)
        return rom_of(file, length, name)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    slow = SlowDisk()
    monkeypatch.setattr(roms, "rom_of", slow.copy)
    yield slow
    slow.may_go_on.set()


def copying(world: InProcess, client: Client) -> asyncio.Future[Dataspace]:
    """As CreateRom does."""
    directory = world.core.settings.audit_directory.parent / "roms"
    client.rom_paths = (directory,)
    path = str(directory / "bios")
    return asyncio.ensure_future(client.whole(lambda: world.core.roms.create(client, path)))


async def test_one_client_does_not_keep_the_others_from_their_roms(
    world: InProcess, disk: SlowDisk
) -> None:
    greedy, modest = world.client(1001), world.client(1002)
    many = [copying(world, greedy) for _ in range(5)]
    await until(lambda: len(disk.copies) == 1)
    one = copying(world, modest)
    await until(lambda: len(disk.copies) == 2)
    assert modest.account.used.ram == PAGE
    disk.may_go_on.set()
    assert {made.kind for made in await asyncio.gather(one, *many)} == {"rom"}


async def test_nothing_is_copied_for_a_client_that_is_gone(
    world: InProcess, disk: SlowDisk
) -> None:
    client = world.client()
    many = [copying(world, client) for _ in range(5)]
    await until(lambda: len(disk.copies) == 1)
    client.end("client process ended")
    disk.may_go_on.set()
    results = await asyncio.gather(*many, return_exceptions=True)
    refused = [each.reason for each in results if isinstance(each, Refusal)]
    assert refused == ["SHUTTING_DOWN"] * 4
    assert len(disk.copies) == 1


async def test_a_sealed_memory_is_not_written_by_an_old_mapping(pair: Pair) -> None:
    """A private mapping is no way around it: it is a copy. A read-only one never becomes writable."""
    accepted = pair.shared(writable=False)
    fd = pair.collect(accepted)
    with mmap.mmap(fd, SIZE, mmap.MAP_PRIVATE) as private:
        private[0] = 1
        assert accepted.memory.read(0, 1) == b"\0"
        await pair.world.core.dataspaces.seal(pair.owner, pair.dataspace.name)
        private[0] = 2
        assert pair.dataspace.memory.read(0, 1) == b"\0"
    os.close(fd)
