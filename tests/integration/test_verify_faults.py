"""Verification finds what is wrong, names it, and names nothing else: faults seeded behind core's back,
in a core of this process with real engines."""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import socket
import sqlite3
import subprocess
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from core_service.allotment import Allotment
from core_service.audit.schema import path_of
from core_service.client import Client
from core_service.core import Core
from core_service.dataspaces import Dataspace
from core_service.engine import catalog
from core_service.engine.native import build
from core_service.engine.process import EngineProcess
from core_service.engine.protocol import MappingKind
from core_service.session import Session
from core_service.settings import Settings
from core_service.verify import verification
from core_service.verify.look import Finding
from core_service.verify.verification import Verification
from tests.integration.engines import on_every_engine
from tests.unit.core_in_process import PAGE, InProcess, in_process

MUNMAP = r"""
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static void *first;
static size_t size;

/* SIGUSR2 unmaps the first dataspace, which is the first sealed memfd that is mapped. */
static void unmap(int number)
{
	(void)number;
	munmap(first, size);
}

void *mmap(void *hint, size_t length, int rights, int flags, int fd, off_t offset)
{
	void *at = (void *)syscall(SYS_mmap, hint, length, rights, flags, fd, offset);
	if (!first && at != MAP_FAILED && fd >= 0 && fcntl(fd, F_GET_SEALS) > 0) {
		first = at;
		size = length;
	}
	return at;
}

void *mmap64(void *, size_t, int, int, int, off_t) __attribute__((alias("mmap")));

__attribute__((constructor)) static void prepare(void)
{
	signal(SIGUSR2, unmap);
}
"""


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[InProcess]:
    """A core, which must be verified and empty in the end."""
    monkeypatch.setattr(verification, "AGAIN", 0.001)
    settings = Settings(audit_directory=tmp_path / "audit")
    running = in_process(monkeypatch, catalog.KINDS, settings)
    await running.core.begin()
    yield running
    await running.must_be_empty()


@pytest.fixture
def preloaded(tmp_path: Path) -> Path:
    """A library that unmaps a dataspace behind its engine's back."""
    source, library = tmp_path / "munmap.c", tmp_path / "munmap.so"
    source.write_text(MUNMAP)
    gnu = ("-D_GNU_SOURCE", "-shared", "-fPIC")
    subprocess.run([*build.compiler(), *gnu, source, "-o", library], check=True)
    return library


@dataclass
class Machine:
    """A client with a VM: one page of RAM at 0, and a vCPU with a page."""

    core: Core
    client: Client
    session: Session
    ram: Dataspace

    async def findings(self) -> list[Finding]:
        """What a verification finds, of the whole log."""
        return (await Verification(self.core).run(whole_chain=True)).findings


async def machine(world: InProcess, engine: str) -> Machine:
    client = world.client()
    client.hold()  # the end of the grace would be the end of a slow test's machine
    session = await world.session(client, engine)
    ram = world.dataspace(client)
    await session.memory.attach(ram, 0, 0, PAGE, read_only=False)
    await session.create_vcpu(0, page_transport=True)
    made = Machine(world.core, client, session, ram)
    assert await made.findings() == []
    return made


@on_every_engine
async def test_everything_is_compared(world: InProcess, engine: str) -> None:
    there = await machine(world, engine)
    verified = await Verification(there.core).run(whole_chain=True)
    assert verified.findings == []
    assert (verified.mappings, verified.descriptors) == (2, 2)
    assert verified.accounts == 4  # the session's, the client's, the user's, core's
    assert verified.events == verified.revision


@on_every_engine
async def test_a_mapping_removed_behind_the_ledger(world: InProcess, engine: str) -> None:
    there = await machine(world, engine)
    await there.session.engine.unmap(0, PAGE)
    told = f"is attached at 0x0..0xfff rw from 0x0 in {there.session.name}"
    assert await there.findings() == [
        Finding("engine", there.ram.name, f"{told}; its engine does not have it")
    ]


@on_every_engine
async def test_a_mapping_made_behind_the_ledger(world: InProcess, engine: str) -> None:
    there = await machine(world, engine)
    [attachment] = there.session.memory.attachments()
    await there.session.engine.map(there.ram.memory, replace(attachment, gpa=8 * PAGE))
    assert await there.findings() == [
        Finding(
            "engine",
            there.session.name,
            "its engine has 0x8000..0x8fff, which is not attached",
        )
    ]


@on_every_engine
async def test_a_mapping_with_other_rights(world: InProcess, engine: str) -> None:
    there = await machine(world, engine)
    [attachment] = there.session.memory.attachments()
    await there.session.engine.unmap(0, PAGE)
    await there.session.engine.map(there.ram.memory, replace(attachment, writable=False))
    told = f"is attached at 0x0..0xfff rw from 0x0 in {there.session.name}"
    assert await there.findings() == [
        Finding(
            "engine",
            there.ram.name,
            f"{told}; its engine has {PAGE} bytes with flags 0x2 there",
        )
    ]


@on_every_engine
async def test_the_memory_of_another_dataspace(world: InProcess, engine: str) -> None:
    there = await machine(world, engine)
    other = world.dataspace(there.client)
    [attachment] = there.session.memory.attachments()
    await there.session.engine.unmap(0, PAGE)
    await there.session.engine.map(other.memory, attachment)
    told = f"is attached at 0x0..0xfff rw from 0x0 in {there.session.name}"
    missing = f"{PAGE} bytes from 0x0 on"
    found = await there.findings()
    assert found == [
        Finding(
            "engine",
            there.ram.name,
            f"{told}; of that, its engine's address space does not have {missing}",
        ),
        Finding(
            "engine",
            there.session.name,
            f"its engine has {PAGE} bytes of {other.name} mapped, which are not attached",
        ),
        Finding(
            "kernel",
            other.name,
            "somebody holds its memory, of which no file descriptor left core",
        ),
    ]


@on_every_engine
async def test_memory_unmapped_within_the_engine(
    world: InProcess, engine: str, preloaded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = tuple(_preloading(kind, preloaded) for kind in catalog.KINDS)
    monkeypatch.setattr(catalog, "KINDS", kinds)
    there = await machine(world, engine)
    os.kill(there.session.engine.pid, signal.SIGUSR2)
    async with asyncio.timeout(10):
        while any(
            each.kind is MappingKind.KERNEL and each.inode == there.ram.memory.memory.inode
            for each in await there.session.memory.list_mappings()
        ):
            pass
    told = f"is attached at 0x0..0xfff rw from 0x0 in {there.session.name}"
    missing = f"{PAGE} bytes from 0x0 on"
    assert await there.findings() == [
        Finding(
            "engine",
            there.ram.name,
            f"{told}; of that, its engine's address space does not have {missing}",
        )
    ]


def _preloading(kind: catalog.Kind, library: Path) -> catalog.Kind:
    return replace(kind, environment=lambda: kind.environment() | {"LD_PRELOAD": str(library)})


async def test_a_leaked_file_descriptor(world: InProcess) -> None:
    there = await machine(world, "soft")
    leaked = there.ram.memory.memory.open(writable=False)
    assert await there.findings() == [
        Finding("kernel", there.ram.name, "its memory has 2 file descriptors in core, not 1")
    ]
    os.close(leaked)


async def test_memory_that_core_maps(world: InProcess) -> None:
    there = await machine(world, "soft")
    memory = world.dataspace(there.client, 4 * PAGE)
    with mmap.mmap(
        memory.memory.memory.description, 2 * PAGE, offset=PAGE
    ):  # with an fd of its own
        told = f"{2 * PAGE} bytes of its memory are mapped in core, which maps none"
        assert await there.findings() == [
            Finding("kernel", memory.name, told),
            Finding("kernel", memory.name, "its memory has 2 file descriptors in core, not 1"),
        ]


async def test_memory_of_no_dataspace(world: InProcess) -> None:
    there = await machine(world, "soft")
    leaked = os.memfd_create("vmsession:dataspaces/gone")
    os.ftruncate(leaked, PAGE)
    assert await there.findings() == [
        Finding(
            "kernel",
            "dataspaces/gone",
            f"1 file descriptors in core of {PAGE} bytes of memory, which no dataspace has",
        )
    ]
    os.close(leaked)


async def test_memory_that_left_core_unseen(world: InProcess) -> None:
    there = await machine(world, "soft")
    free = world.dataspace(there.client)
    near, far = socket.socketpair()
    with near, far:
        fd = free.memory.memory.open(writable=True)
        socket.send_fds(near, [b"?"], [fd])
        os.close(fd)
        assert await there.findings() == [
            Finding(
                "kernel",
                free.name,
                "somebody holds its memory, of which no file descriptor left core",
            )
        ]


async def test_a_lost_charge(world: InProcess) -> None:
    there = await machine(world, "soft")
    there.client.account.refund(ram=PAGE)
    assert await there.findings() == [
        Finding(
            "quota",
            there.client.name,
            f"is charged -{PAGE} bytes and +0 capabilities beyond what its objects cost",
        )
    ]
    there.client.account.charge(ram=PAGE)


async def test_a_charge_for_nothing(world: InProcess) -> None:
    there = await machine(world, "soft")
    there.session.account.charge(caps=2)
    assert await there.findings() == [
        Finding(
            "quota",
            there.session.name,
            "is charged +0 bytes and +2 capabilities beyond what its objects cost",
        )
    ]
    there.session.account.refund(caps=2)


async def test_an_engine_of_nobody(world: InProcess) -> None:
    there = await machine(world, "soft")
    kind = next(kind for kind in catalog.KINDS if kind.name == "soft")
    stray = EngineProcess.spawn("soft", kind.executable, kind.environment(), 5)
    await stray.greet(10)
    assert await there.findings() == [
        Finding(
            "kernel",
            f"process {stray.pid}",
            "vmsession-soft, a child of core, is nobody's engine",
        )
    ]
    await stray.stop()


async def test_an_engine_of_no_session(world: InProcess) -> None:
    there = await machine(world, "soft")
    stray = await there.core.engines.start("soft", None, "sessions/stray", Allotment())
    assert await there.findings() == [
        Finding("kernel", f"process {stray.pid}", "is an engine of core's, and of no session")
    ]
    await stray.stop()


async def test_a_record_of_nothing(world: InProcess) -> None:
    there = await machine(world, "soft")
    there.core.ledger.create("dataspaces/ghost", "ram", PAGE, "0:0:1")
    assert await there.findings() == [
        Finding("ledger", "dataspaces/ghost", "is alive on record, and core has it not")
    ]
    there.core.ledger.free("dataspaces/ghost", "test")


async def test_an_attachment_that_is_not_on_record(world: InProcess) -> None:
    there = await machine(world, "soft")
    [attachment] = there.session.memory.attachments()
    there.core.ledger.detach(there.ram.name, there.session.name, 0, PAGE)
    told = f"0x0..0xfff rw from 0x0 in {there.session.name}"
    assert await there.findings() == [
        Finding("ledger", there.ram.name, f"is attached at {told}, which is not on record")
    ]
    there.core.ledger.attach(
        there.ram.name,
        there.session.name,
        0,
        PAGE,
        0,
        attachment.writable,
        attachment.executable,
    )


async def tampered(there: Machine, statement: str) -> None:
    """Change the log by hand, its triggers dropped."""
    await there.core.everything_recorded()
    [path] = there.core.audit.directory.glob(path_of(Path(), 1).name)
    with closing(sqlite3.connect(path)) as connection, connection:
        triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        for (name,) in triggers.fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        assert connection.execute(statement).rowcount == 1


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "UPDATE events SET cause = 'nothing happened' WHERE revision = 3",
            "event 3 does not have its hash: changed",
        ),
        ("DELETE FROM events WHERE revision = 3", "event 4 comes after 2"),
    ],
)
async def test_a_log_that_was_changed(world: InProcess, statement: str, message: str) -> None:
    there = await machine(world, "soft")
    await tampered(there, statement)
    found = await there.findings()
    assert {finding.check for finding in found} == {"chain"}
    assert message in {finding.message for finding in found}


async def test_only_what_was_added_is_checked_again(world: InProcess) -> None:
    there = await machine(world, "soft")
    verification = Verification(there.core)
    first = await verification.run(whole_chain=False)
    assert first.events == first.revision
    world.dataspace(there.client)
    await there.core.everything_recorded()
    again = await verification.run(whole_chain=False)
    assert (again.events, again.findings) == (1, [])


async def test_changes_under_way_are_no_findings(world: InProcess) -> None:
    """Everything changes while it is verified, again and again."""
    there = await machine(world, "soft")
    verification = Verification(there.core)
    changes = 0

    async def attach_and_free() -> None:
        dataspace = world.dataspace(there.client)
        await there.session.memory.attach(dataspace, 8 * PAGE, 0, PAGE, read_only=False)
        await there.core.dataspaces.end(dataspace, "test")

    async def change() -> None:
        nonlocal changes
        while True:
            await there.client.whole(attach_and_free)
            changes += 1

    changing = asyncio.create_task(change())
    for _ in range(20):
        assert (await verification.run(whole_chain=False)).findings == []
    changing.cancel()
    await asyncio.wait([changing])
    assert changing.cancelled()
    assert changes > 20
