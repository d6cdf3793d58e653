"""The audit log: what was recorded is there, whatever happens."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from core_service.audit import AuditError, AuditLog, Committed, Query, schema, verify_chain
from core_service.audit.chain import GENESIS
from dataspace.record import Detail, EventKind
from tests.unit.audit_events import ALICE, BOB, Script, created

C, F = EventKind.CREATED, EventKind.FREED


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def audit(directory: Path) -> Iterator[AuditLog]:
    with closing(AuditLog.open(directory)) as log:
        yield log


async def test_an_event_is_recorded_as_it_was(audit: AuditLog, directory: Path) -> None:
    event = Script()(C, "dataspaces/1", created(), actor=ALICE, cause="CreateRam")
    audit.append(event)
    await audit.recorded(1)
    (found,) = Query(directory).events()
    assert found.event == event
    assert found.hash == audit.head.hash
    assert audit.head.revision == audit.last_revision == 1
    assert verify_chain(directory) == (1, audit.head, [])


async def test_a_subscriber_gets_what_is_recorded_and_whom_it_concerns(audit: AuditLog) -> None:
    got: list[Committed] = []
    later: list[Committed] = []

    def take(events: Sequence[Committed]) -> None:
        got.extend(events)

    end = audit.subscribe(take)
    script = Script()
    events = [
        script(C, "dataspaces/1", created(ALICE), actor=ALICE),
        script(EventKind.HANDED_OUT, "dataspaces/1", {"writable": True}, actor=BOB),
        script(F, "dataspaces/1", cause="client ended"),
        script(EventKind.STARTED, "cores/7k2m", {"kind": "core"}),
    ]
    for event in events:
        audit.append(event)
    await audit.recorded(4)
    await asyncio.sleep(0)
    assert [committed.event for committed in got] == events
    assert [committed.uids for committed in got] == [{1000}, {1000, 1001}, {1000}, set()]
    assert got[-1].hash == audit.head.hash
    end()
    audit.subscribe(later.extend)
    audit.append(script(C, "dataspaces/2", created()))
    await audit.recorded(5)
    assert len(got) == 4
    assert [committed.event.revision for committed in later] == [5]


async def test_a_log_goes_on_where_it_ended(directory: Path) -> None:
    script = Script()
    with closing(AuditLog.open(directory)) as audit:
        assert audit.alive() == []
        for name in ("dataspaces/1", "dataspaces/2", "dataspaces/3"):
            audit.append(script(C, name, created()))
        audit.append(script(EventKind.OPENED, "sessions/1", {"kind": "session", "holder": ALICE}))
        audit.append(script(F, "dataspaces/1"))
        audit.append(script(EventKind.HELD, "dataspaces/3"))
    with closing(AuditLog.open(directory)) as audit:
        assert audit.last_revision == 6
        assert audit.alive() == [
            ("dataspaces/2", "ram"),
            ("dataspaces/3", "ram"),
            ("sessions/1", "session"),
        ]
        for name, kind in audit.alive():
            audit.append(
                script(EventKind.LOST, name, {"kind": kind}, cause="lost at crash"),
            )
        await audit.recorded(9)
    with closing(AuditLog.open(directory)) as audit:
        assert audit.alive() == []
    assert verify_chain(directory).discrepancies == []


async def test_a_vcpu_and_its_page_are_two_objects_of_one_name(directory: Path) -> None:
    script, name = Script(), "sessions/1/vcpus/0"
    with closing(AuditLog.open(directory)) as audit:
        audit.append(script(EventKind.OPENED, name, {"kind": "vcpu", "holder": ALICE}))
        audit.append(script(C, name, created(kind="vcpu_page", size=12288)))
        audit.append(script(EventKind.CLOSED, name))
    with closing(AuditLog.open(directory)) as audit:
        assert audit.alive() == [(name, "vcpu_page")]


def test_there_is_one_writer(audit: AuditLog, directory: Path) -> None:
    with pytest.raises(AuditError, match=f"{directory}: another core writes here"):
        AuditLog.open(directory)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_directory_that_others_may_write_is_none(directory: Path, mode: int) -> None:
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(AuditError, match=f"others may write to it: its mode is {mode:04o}"):
        AuditLog.open(directory)
    assert list(directory.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_none(directory: Path) -> None:
    directory.mkdir(0o700)
    os.chown(directory, 1000, 1000)
    with pytest.raises(AuditError, match="belongs to user 1000, not to 0"):
        AuditLog.open(directory)


def test_the_lock_is_no_link(directory: Path, tmp_path: Path) -> None:
    directory.mkdir(0o700)
    (directory / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AuditError):
        AuditLog.open(directory)
    assert not (tmp_path / "elsewhere").exists()


def test_the_lock_goes_with_the_log(directory: Path) -> None:
    AuditLog.open(directory).close()
    AuditLog.open(directory).close()


def test_a_revision_is_the_next_one(audit: AuditLog) -> None:
    audit.append(Script()(C, "dataspaces/1", created()))
    for after in (0, 2):
        with pytest.raises(ValueError, match=f"event {after + 1} after event 1"):
            audit.append(Script(after)(C, "dataspaces/2", created()))
    assert audit.last_revision == 1


async def test_text_that_is_not_unicode_does_not_stop_the_log(
    audit: AuditLog, directory: Path
) -> None:
    audit.append(Script()(C, "dataspaces/1", created(), cause="\udcff\0"))
    await audit.recorded(1)
    assert Query(directory).events()[0].event.cause == "\\udcff\0"
    assert verify_chain(directory).discrepancies == []


def test_a_file_can_be_read_from_the_moment_it_has_its_name(tmp_path: Path) -> None:
    # switched to WAL only later, a kill would leave a journal that a reader may not roll back
    path = schema.create(tmp_path, schema.Head(0, GENESIS), [], [])
    assert path.read_bytes()[18:20] == b"\2\2"  # WAL: sqlite.org/fileformat.html, 1.3
    assert list(tmp_path.iterdir()) == [path]


def test_events_cannot_be_changed_by_mistake(directory: Path) -> None:
    with closing(AuditLog.open(directory)) as audit:
        script = Script()
        audit.append(script(C, "dataspaces/1", created()))
        audit.append(script(F, "dataspaces/1"))
    (path,) = directory.glob("*.sqlite")
    with closing(sqlite3.connect(path)) as connection:
        for statement in (
            "DELETE FROM events",
            "UPDATE events SET cause = ''",
            "DELETE FROM concerns",
            "UPDATE file SET first = 2",
            "DELETE FROM objects",
            "UPDATE objects SET size = 1",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                connection.execute(statement)


async def test_an_offer_concerns_who_makes_it_and_whom_it_is_made_to(audit: AuditLog) -> None:
    got: list[Committed] = []
    audit.subscribe(got.extend)
    script = Script()
    offer: Detail = {"dataspace": "dataspaces/1", "uid": 1001, "pid": 0, "size": 4096}
    audit.append(script(EventKind.SHARED, "shares/1", offer, actor=ALICE))
    audit.append(script(EventKind.REVOKED, "shares/1", cause="client ended"))
    await audit.recorded(2)
    await asyncio.sleep(0)
    assert [committed.uids for committed in got] == [{1000, 1001}, {1000}]
