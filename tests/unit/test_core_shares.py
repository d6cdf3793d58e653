"""Shares in core: who is charged, who is unmapped, who answers for memory that is still held."""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core_service.dataspaces import holder
from core_service.refusal import Refusal
from core_service.settings import Settings
from dataspace.errors import InvalidDataspace, NotWritable, OutOfCaps, OutOfRam, StillWritable
from tests.unit.core_in_process import PAGE, InProcess, behaviours, in_process, open_fds, until
from tests.unit.core_pair import SIZE, Pair, ledger_state


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[InProcess]:
    """A core with obedient engines and one that refuses to unmap, of which nothing must be left."""
    before = open_fds()
    settings = Settings(client_ram=8 * SIZE, audit_directory=tmp_path / "audit")
    running = in_process(monkeypatch, behaviours(tmp_path, "good", "keeps"), settings)
    yield running
    await running.must_be_empty()
    assert open_fds() == before


@pytest.fixture
async def pair(world: InProcess) -> Pair:
    """Two clients."""
    return Pair(world)


async def test_each_holder_is_charged_in_full(pair: Pair) -> None:
    share = pair.offer(PAGE, 2 * PAGE)
    assert pair.charged(pair.owner) == (SIZE, 2)
    assert pair.charged(pair.receiver) == (0, 0)
    accepted = pair.world.core.shares.accept(pair.receiver, share.name)
    assert pair.charged(pair.receiver) == (2 * PAGE, 1)
    record = pair.world.core.ledger.record(accepted.name)
    assert (record.kind, record.size, record.origin) == ("share", 2 * PAGE, pair.dataspace.name)
    assert record.holders == pair.world.core.ledger.record(pair.dataspace.name).holders == 2
    assert not await pair.revoke(accepted)
    assert pair.charged(pair.owner) == (SIZE, 1)
    assert pair.charged(pair.receiver) == (0, 0)


async def test_a_part_is_its_part_alone(pair: Pair) -> None:
    accepted = pair.shared(PAGE, PAGE)
    pair.dataspace.memory.write(0, b"a" * PAGE + b"b" * PAGE + b"c" * PAGE)
    assert accepted.memory.read(0, PAGE) == b"b" * PAGE
    accepted.memory.write(PAGE - 1, b"x")
    assert pair.dataspace.memory.read(2 * PAGE - 1, 2) == b"xc"
    with pytest.raises(InvalidDataspace, match="a part has no file descriptor"):
        pair.collect(accepted)
    session = await pair.world.session(pair.receiver)
    with pytest.raises(InvalidDataspace):
        await session.memory.attach(accepted, 0, 0, 2 * PAGE, read_only=False)


@pytest.mark.parametrize(
    ("offset", "size"), [(1, PAGE), (0, 1), (SIZE, 0), (0, SIZE + PAGE), (PAGE, SIZE)]
)
async def test_only_parts_of_it_can_be_offered(pair: Pair, offset: int, size: int) -> None:
    with pytest.raises(InvalidDataspace):
        pair.offer(offset, size)
    assert pair.charged(pair.owner) == (SIZE, 1)


async def test_a_share_is_not_shared_again(pair: Pair) -> None:
    accepted = pair.shared()
    with pytest.raises(InvalidDataspace, match="is a share itself"):
        pair.world.core.shares.offer(pair.receiver, accepted, 1002, 0, 0, 0, True)


async def test_nobody_else_can_accept_see_or_revoke(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = pair.world.core.shares
    started = pair.receiver.identity.started
    monkeypatch.setattr("core_service.shares.distinction", lambda pid: started)
    share = shares.offer(pair.owner, pair.dataspace, 1001, pair.receiver.identity.pid, 0, 0, True)
    stranger, same_user = pair.world.client(1002), pair.world.client(1001)
    for other in stranger, same_user:
        with pytest.raises(Refusal) as refused:
            shares.accept(other, share.name)
        assert refused.value.reason == "NOT_FOUND"
        assert not shares.visible_to(other)
    for other in stranger, pair.receiver:
        with pytest.raises(Refusal) as refused:
            await shares.revoke(other, share.name)
        assert refused.value.reason == "NOT_FOUND"
    assert shares.visible_to(pair.owner) == shares.visible_to(pair.receiver) == [share]


async def test_an_offer_is_accepted_once(pair: Pair) -> None:
    share = pair.offer()
    accepted = pair.world.core.shares.accept(pair.receiver, share.name)
    for _ in range(2):
        with pytest.raises(Refusal) as refused:
            pair.world.core.shares.accept(pair.receiver, share.name)
        assert refused.value.reason == "ALREADY_EXISTS"
        await pair.free(accepted)
    assert pair.charged(pair.owner) == (SIZE, 2)


async def test_quota_of_both_sides_is_kept(pair: Pair) -> None:
    pair.world.dataspace(pair.receiver, 8 * SIZE - PAGE)
    share = pair.offer()
    with pytest.raises(OutOfRam):
        pair.world.core.shares.accept(pair.receiver, share.name)
    assert not share.accepted
    pair.owner.account.charge(caps=pair.owner.account.free.caps)
    with pytest.raises(OutOfCaps):
        pair.offer()
    pair.owner.account.refund(caps=pair.owner.account.used.caps - 2)


async def test_revoking_unmaps_from_all_sessions_of_the_receiver(pair: Pair) -> None:
    accepted = pair.shared()
    sessions = [await pair.attached(accepted) for _ in range(2)]
    owners = await pair.attached(pair.dataspace)
    assert not await pair.revoke(accepted)
    assert [session.memory.count for session in sessions] == [0, 0]
    assert owners.memory.count == 1
    assert ledger_state(pair, accepted) == "freed"
    with pytest.raises(Refusal):
        pair.world.core.dataspaces.of(pair.receiver, accepted.name)


async def test_an_engine_that_keeps_it_ends(pair: Pair) -> None:
    accepted = pair.shared()
    session = await pair.world.session(pair.receiver, "keeps")
    await session.memory.attach(accepted, 0, 0, 0, read_only=False)
    assert not await pair.revoke(accepted)
    assert session.closing
    assert ledger_state(pair, accepted) == "freed"


async def test_revoking_waits_for_a_receiver_who_frees_it_meanwhile(pair: Pair) -> None:
    accepted = pair.shared()
    session = await pair.attached(accepted)
    freeing = asyncio.create_task(pair.free(accepted))
    await asyncio.sleep(0)
    assert not await pair.revoke(accepted)
    assert session.memory.count == 0
    assert ledger_state(pair, accepted) == "freed"
    await freeing


async def test_a_session_does_not_attach_what_is_being_taken_back(pair: Pair) -> None:
    accepted = pair.shared()
    session = await pair.attached(accepted)
    revoking = asyncio.create_task(pair.revoke(accepted))
    await asyncio.sleep(0)
    with pytest.raises(Refusal) as refused:
        await session.memory.attach(accepted, SIZE, 0, 0, read_only=False)
    assert refused.value.reason == "NOT_FOUND"
    await revoking
    assert session.memory.count == 0


async def test_the_owners_free_ends_all_shares_first(pair: Pair) -> None:
    accepted = [pair.shared(PAGE * n, PAGE) for n in range(3)]
    open_offer = pair.offer()
    session = await pair.attached(accepted[0])
    assert not await pair.free(pair.dataspace)
    assert session.memory.count == 0
    assert [ledger_state(pair, each) for each in accepted] == ["freed"] * 3
    freed = [record.name for record in pair.world.core.ledger.all()]
    assert freed[-1] == pair.dataspace.name
    assert pair.charged(pair.owner) == (0, 0)
    with pytest.raises(Refusal):
        pair.world.core.shares.accept(pair.receiver, open_offer.name)


@pytest.mark.parametrize("how", ["free", "end"])
async def test_a_receivers_end_ends_its_part_only(pair: Pair, how: str) -> None:
    other = pair.world.core.shares.accept(pair.world.client(1001), pair.offer().name)
    accepted = pair.shared()
    await pair.attached(accepted)
    owners = await pair.attached(pair.dataspace)
    if how == "free":
        await pair.free(accepted)
    else:
        pair.receiver.end("client process ended")
        await until(lambda: ledger_state(pair, accepted) == "freed")
    assert (ledger_state(pair, other), ledger_state(pair, pair.dataspace)) == ("alive", "alive")
    assert owners.memory.count == 1
    assert other.memory.read(0, 1) == b"\0"


async def test_both_ends_at_once(pair: Pair) -> None:
    """The receiver's account closes only when what the owner takes back is gone from it."""
    accepted = pair.shared()
    await pair.attached(accepted)
    await pair.attached(pair.dataspace)
    pair.owner.end("client process ended")
    pair.receiver.end("client process ended")
    await until(lambda: ledger_state(pair, pair.dataspace) == "freed")
    await until(lambda: not len(pair.world.core.clients))


async def test_an_fd_that_cannot_be_recorded_does_not_stay_open(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InvalidDataspace("cannot be recorded")

    monkeypatch.setattr(pair.world.core.ledger, "hand_out", refuse)
    with pytest.raises(InvalidDataspace):
        pair.collect(pair.dataspace)
    assert not await pair.free(pair.dataspace)


async def test_a_receiver_who_had_no_fd_holds_nothing(pair: Pair) -> None:
    """Though the owner has one, so that the kernel says that somebody does."""
    accepted = pair.shared()
    fd = pair.collect(pair.dataspace)
    assert not await pair.revoke(accepted)
    os.close(fd)


async def test_an_owner_who_had_no_fd_does_not_answer_for_the_receiver(pair: Pair) -> None:
    accepted = pair.shared()
    fd = pair.collect(accepted)
    assert not await pair.free(pair.dataspace)
    assert ledger_state(pair, accepted) == "held"
    assert pair.charged(pair.owner) == (0, 0)
    assert pair.world.core.users.account(1001).used.ram == SIZE
    os.close(fd)
    pair.world.core.dataspaces.probe()
    assert ledger_state(pair, accepted) == "freed"


async def test_where_it_cannot_be_told_nothing_is_refunded_early(pair: Pair) -> None:
    accepted = pair.shared()
    theirs, mine = pair.collect(accepted), pair.collect(pair.dataspace)
    os.close(theirs)
    assert await pair.revoke(accepted)
    pair.world.core.dataspaces.probe()
    assert ledger_state(pair, accepted) == "held"
    assert await pair.free(pair.dataspace)
    assert pair.world.core.ledger.totals().held_bytes == 2 * SIZE
    os.close(mine)
    pair.world.core.dataspaces.probe()
    assert pair.world.core.ledger.totals().held == 0


async def test_the_last_view_answers_for_whoever_holds_it(pair: Pair) -> None:
    accepted = pair.shared()
    fd = pair.dataspace.memory.open(writable=True)  # as an engine that keeps what it was sent
    assert not await pair.revoke(accepted)
    assert await pair.free(pair.dataspace)
    os.close(fd)


async def test_a_read_only_share_is_read_only(pair: Pair) -> None:
    accepted = pair.shared(writable=False)
    with pytest.raises(NotWritable):
        accepted.memory.write(0, b"x")
    fd = pair.collect(accepted)
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    os.close(fd)
    session = await pair.attached(accepted)
    assert [attachment.writable for attachment in session.memory.attachments()] == [False]
    assert pair.dataspace.memory.writable


async def test_sealed_memory_is_read_only_to_everybody(pair: Pair) -> None:
    accepted = pair.shared()
    pair.dataspace.memory.write(0, b"for good")
    sealed = await pair.world.core.dataspaces.seal(pair.owner, pair.dataspace.name)
    assert sealed is pair.dataspace
    for each in pair.dataspace, accepted:
        with pytest.raises(NotWritable):
            each.memory.write(0, b"x")
        session = await pair.attached(each)
        assert [attachment.writable for attachment in session.memory.attachments()] == [False]
        fd = pair.collect(each)
        with pytest.raises(PermissionError):
            mmap.mmap(fd, SIZE)
        os.close(fd)
    assert accepted.memory.read(0, 8) == b"for good"
    await pair.world.core.dataspaces.seal(pair.owner, pair.dataspace.name)
    kinds = [record.name for record in pair.world.core.ledger.alive()]
    assert len(kinds) == 2
    with pytest.raises(NotWritable):
        pair.offer()
    pair.offer(writable=False)


async def test_a_writable_attachment_is_in_the_way_of_a_seal(pair: Pair) -> None:
    seal = pair.world.core.dataspaces.seal
    name = pair.dataspace.name
    mine = await pair.attached(pair.dataspace)
    with pytest.raises(StillWritable) as refused:
        await seal(pair.owner, name)
    assert refused.value.numbers["session"] == mine.name
    await mine.memory.detach(0, SIZE)
    theirs = await pair.attached(pair.shared())
    with pytest.raises(StillWritable) as refused:
        await seal(pair.owner, name)
    assert "session" not in refused.value.numbers
    assert theirs.name not in str(refused.value)
    assert holder(pair.receiver) in str(refused.value)
    await theirs.memory.detach(0, SIZE)
    await seal(pair.owner, name)


async def test_a_writable_mapping_is_in_the_way_of_a_seal(pair: Pair) -> None:
    fd = pair.collect(pair.dataspace)
    with mmap.mmap(fd, SIZE):
        with pytest.raises(StillWritable, match="a writable mapping"):
            await pair.world.core.dataspaces.seal(pair.owner, pair.dataspace.name)
        assert pair.dataspace.memory.writable
    await pair.world.core.dataspaces.seal(pair.owner, pair.dataspace.name)
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    os.close(fd)


async def test_only_its_owner_seals(pair: Pair) -> None:
    accepted = pair.shared()
    with pytest.raises(NotWritable):
        await pair.world.core.dataspaces.seal(pair.receiver, accepted.name)
    fd = pair.collect(accepted)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    with pytest.raises(StillWritable, match="another client was given"):
        await pair.world.core.dataspaces.seal(pair.owner, pair.dataspace.name)
    os.close(fd)


async def test_freeing_waits_for_a_seal_under_way(pair: Pair) -> None:
    sealing = asyncio.create_task(pair.world.core.dataspaces.seal(pair.owner, pair.dataspace.name))
    await asyncio.sleep(0)
    assert not await pair.free(pair.dataspace)
    assert (await sealing) is pair.dataspace
