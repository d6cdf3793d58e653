"""The audit log when core is killed, or the disk is full."""

from __future__ import annotations

import asyncio
import random
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from core_service.audit import AuditFailure, AuditLog, Query, schema, verify_chain
from core_service.audit.schema import Head
from core_service.audit.store import Store
from dataspace.record import EventKind
from tests.unit.audit_events import Script, created


def killed_after(directory: Path, seconds: float) -> Head:
    """Run a writer, kill it `seconds` after its first line, and return the last head that it told."""
    command = [sys.executable, "-m", "tests.unit.audit_writer", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        told = [writer.stdout.readline()]
        with suppress(subprocess.TimeoutExpired):
            writer.wait(seconds)
        writer.kill()
        told += writer.stdout.readlines()
    assert writer.returncode == -signal.SIGKILL
    whole = [line.split() for line in told if line.endswith("\n")]
    revision, digest = whole[-1]
    return Head(int(revision), bytes.fromhex(digest))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.soak)])
def test_nothing_that_was_recorded_is_lost_when_core_is_killed(tmp_path: Path, kills: int) -> None:
    chance = random.Random(1)
    events = 0
    for _ in range(kills):
        head = killed_after(tmp_path, chance.uniform(0, 0.03))
        checked = verify_chain(tmp_path, head=head)
        assert checked.discrepancies == []
        assert checked.head.revision > events
        events = checked.head.revision
    assert verify_chain(tmp_path).events == events == Query(tmp_path).last_revision()


class Disk:
    """A place for the store that can be made full, and be given room again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def fill(self) -> None:
        """Leave no room."""
        raise NotImplementedError

    def make_room(self) -> None:
        """Leave room again."""
        raise NotImplementedError


class SmallDisk(Disk):
    """A file system of its own, of 1 MiB. While it is full, a reader keeps the WAL from being reset:
    the room of that would be enough to go on."""

    def fill(self) -> None:
        self._reader = schema.connect_to_read(schema.files_of(self.directory)[-1])
        self._reader.execute("BEGIN")
        self._reader.execute("SELECT * FROM file").fetchall()
        with (self.directory / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))

    def make_room(self) -> None:
        self._reader.close()
        (self.directory / "filler").unlink()


class FileLimit(Disk):
    """No file of this process can be written beyond 16 KiB, which is less than the store's tables and
    its shared memory need: it stays so, whatever a checkpoint frees."""

    def fill(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, resource.RLIM_INFINITY))

    def make_room(self) -> None:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


@contextmanager
def small_disk(directory: Path, mib: int = 1) -> Iterator[Disk]:
    """Mount it for a while, of so many MiB."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "tmpfs", str(directory)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs CAP_SYS_ADMIN")
    try:
        yield SmallDisk(directory)
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@contextmanager
def file_limit(directory: Path) -> Iterator[Disk]:
    """Lift it afterwards."""
    if resource.getrlimit(resource.RLIMIT_FSIZE) != (resource.RLIM_INFINITY,) * 2:
        pytest.skip("RLIMIT_FSIZE is set already")
    disk = FileLimit(directory)
    try:
        yield disk
    finally:
        disk.make_room()


@pytest.fixture(params=[small_disk, file_limit])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    with request.param(tmp_path) as disk:
        yield disk


async def fill_until_failure(log: AuditLog, script: Script) -> int:
    """Create until it cannot be recorded; how many dataspaces there are."""
    for number in range(10_000):
        log.append(script(EventKind.CREATED, f"dataspaces/{number}", created()))
        try:
            await log.recorded(log.last_revision)
        except AuditFailure:
            return number + 1
    raise AssertionError("10,000 events on a full disk")


async def test_on_a_full_disk_nothing_is_made_and_what_ends_is_recorded_later(disk: Disk) -> None:
    script, loop = Script(), asyncio.get_running_loop()
    done = loop.create_future()
    with closing(AuditLog.open(disk.directory)) as log:
        log.append(script(EventKind.STARTED, "cores/1", {"kind": "core"}))
        await log.recorded(1)
        disk.fill()
        count = await fill_until_failure(log, script)
        revision = log.last_revision
        assert not log.healthy
        with pytest.raises(AuditFailure) as refused:
            log.require()
        assert refused.value.reason == "AUDIT_FAILURE"
        assert refused.value.numbers["why"] in {"database or disk is full", "disk I/O error"}
        with pytest.raises(AuditFailure):
            log.append(Script(revision)(EventKind.CREATED, "dataspaces/x", created()))
        assert log.last_revision == revision
        for number in range(count):
            log.append(script(EventKind.FREED, f"dataspaces/{number}"))
        with pytest.raises(AuditFailure):
            await log.recorded(log.last_revision)
        log.subscribe(
            lambda events: (
                done.set_result(None) if events[-1].event.revision == log.last_revision else None
            )
        )
        disk.make_room()
        await done
        await log.recorded(log.last_revision)
        assert log.healthy
        log.append(script(EventKind.CREATED, "dataspaces/y", created()))
        await log.recorded(log.last_revision)
    assert log.last_revision == 1 + 2 * count + 1
    assert verify_chain(disk.directory, head=log.head) == (log.last_revision, log.head, [])


async def test_a_log_that_cannot_be_written_is_closed_all_the_same(disk: Disk) -> None:
    log = AuditLog.open(disk.directory)
    disk.fill()
    await fill_until_failure(log, Script())
    with pytest.raises(AuditFailure, match="1 events are lost"):
        log.close()
    disk.make_room()
    with closing(AuditLog.open(disk.directory)) as again:
        assert again.last_revision == log.last_revision - 1


async def test_a_defect_of_the_writer_is_told_and_not_the_end_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script()
    with closing(AuditLog.open(tmp_path)) as log:
        with monkeypatch.context() as broken:
            broken.setattr(Store, "append", raising(OverflowError("too large")))
            log.append(script(EventKind.CREATED, "dataspaces/1", created()))
            with pytest.raises(AuditFailure, match="too large"):
                await asyncio.wait_for(log.recorded(1), 5)
            done = asyncio.Event()  # before the writer can succeed again, which it tries by itself
            log.subscribe(lambda _events: done.set())
        await asyncio.wait_for(done.wait(), 5)
        assert log.healthy
    assert verify_chain(tmp_path) == (1, log.head, [])


async def test_a_log_that_was_removed_meanwhile_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script()
    log = AuditLog.open(tmp_path)
    log.append(script(EventKind.CREATED, "dataspaces/1", created()))
    await log.recorded(1)
    with monkeypatch.context() as broken:
        broken.setattr(Store, "append", raising(sqlite3.OperationalError("disk I/O error")))
        log.append(script(EventKind.FREED, "dataspaces/1"))
        with pytest.raises(AuditFailure):
            await log.recorded(2)
        for path in schema.files_of(tmp_path):
            path.unlink()
    with pytest.raises(AuditFailure, match="ends with event 0; 1 were recorded"):
        log.close()
    assert Query(tmp_path).events() == []


def raising(error: Exception) -> Callable[..., None]:
    """What fails with an error, whatever it is called with."""

    def fail(*_arguments: object) -> None:
        raise error

    return fail
