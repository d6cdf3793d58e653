"""Core and engines without fds, processes or memory: what cannot be had is refused with its reason, the
rest goes on, nothing spins, and nothing is left of what failed half-way."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from vmsession.v1.vm_session_pb2 import GetSessionRequest

from tests.faults.books import books
from tests.integration.running_core import RunningCore
from tests.integration.waiting import eventually
from vmm_client import Connection, Session, connect
from vmm_client.errors import CoreUnavailable, Refused

T = TypeVar("T")

PAGE = 4096
MIB = 1 << 20
HEADROOM = 10  # fds or threads: enough for anything that is asked for below
TYPED = {"MEMORY_FAILURE", "ENGINE_UNAVAILABLE", "AUDIT_FAILURE", "no connection"}
TROUBLE = ("defect", "Traceback", "reclaiming failed", "never retrieved", "Fatal error")
PIDS = Path("/sys/fs/cgroup/pids")


class Attempts:
    """Everything that takes fds, threads or processes; `refused` are why it was not to be had."""

    def __init__(self, core: RunningCore, client: Connection) -> None:
        self.refused: list[str] = []
        self._core = core
        self._client = client

    def make_all(self) -> None:
        """Whatever can be had, and give it back."""
        self._attempt(lambda: connect(str(self._core.socket)).close())
        session = self._attempt(lambda: self._client.create_session("soft"))
        ram = self._attempt(lambda: self._client.create_ram(PAGE))
        if ram:
            self._attempt(lambda: ram.view)
            self._attempt(lambda: ram.share(os.geteuid()))
        if session:
            self._attempt(session.create_vcpu)
            self._attempt(lambda: session.create_vcpu(1, stream=True))
        if session and ram:
            self._attempt(lambda: session.attach(ram, 0))
        self._attempt(lambda: list(self._client.events()))
        for made in (session, ram):
            if made:
                made.close()

    def must_be_typed(self) -> None:
        assert set(self.refused) <= TYPED

    def _attempt(self, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except Refused as refusal:
            self.refused.append(refusal.reason if refusal.reason in TYPED else str(refusal))
        except CoreUnavailable:
            self.refused.append("no connection")
        return None


def fds(core: RunningCore) -> int:
    return sum(1 for _ in Path(f"/proc/{core.process.pid}/fd").iterdir())


def cpu_seconds(core: RunningCore) -> float:
    fields = Path(f"/proc/{core.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def limited(pid: int, what: int, limit: int) -> Iterator[None]:
    """A process's own limit, for a while."""
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, what, before)


def must_be_as_before(core: RunningCore, client: Connection, expected: dict[str, object]) -> None:
    eventually(lambda: books(client) == expected, lambda: f"{books(client)}\n{core.log()}")
    assert not client.verify().discrepancies
    assert core.process.poll() is None
    for trouble in TROUBLE:
        assert trouble not in core.log(), core.log()


def test_core_without_fds(core: RunningCore) -> None:
    """With one fd after the other, so that each step of each call is the one that fails."""
    with connect(str(core.socket)) as client:
        attempts = Attempts(core, client)
        attempts.make_all()  # opens what stays open
        assert attempts.refused == []
        before, open_before = books(client), fds(core)
        for headroom in range(1, HEADROOM):  # without any, a client waits in the backlog
            with limited(core.process.pid, resource.RLIMIT_NOFILE, open_before + headroom):
                attempts.make_all()
            assert attempts.refused
            must_be_as_before(core, client, before)
        attempts.must_be_typed()
        attempts.refused.clear()
        attempts.make_all()
        assert attempts.refused == []
        eventually(lambda: fds(core) <= open_before, lambda: f"{fds(core)}, not {open_before}")


def test_a_front_door_without_fds_does_not_spin(core: RunningCore) -> None:
    with connect(str(core.socket)):
        with limited(core.process.pid, resource.RLIMIT_NOFILE, 3):
            used, began = cpu_seconds(core), time.monotonic()
            with pytest.raises(CoreUnavailable):
                connect(str(core.socket))
            took = time.monotonic() - began
            assert cpu_seconds(core) - used < 0.5 * took
        connect(str(core.socket)).close()


@contextmanager
def tasks_of(core: RunningCore) -> Iterator[Path]:
    """A pids cgroup of core's own, and of the engines that it starts from now on."""
    group = PIDS / f"vmsession-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no pids controller whose groups this user can make")
    try:
        (group / "cgroup.procs").write_text(f"{core.process.pid}")
        yield group
    finally:
        (group.parent / "cgroup.procs").write_text(f"{core.process.pid}")
        group.rmdir()


def test_core_without_processes(core: RunningCore) -> None:
    """With one task after the other: the engine, then each of its threads, are not to be had."""
    with connect(str(core.socket)) as client, tasks_of(core) as group:
        attempts = Attempts(core, client)
        attempts.make_all()
        before = books(client)
        for headroom in range(HEADROOM):
            tasks = int((group / "pids.current").read_text())
            (group / "pids.max").write_text(f"{tasks + headroom}")
            attempts.make_all()
            (group / "pids.max").write_text("max")
            assert attempts.refused
            must_be_as_before(core, client, before)
        begun = [each for each in client.events() if each.cause == "vCPU could not be created"]
        assert "closed" in {each.kind for each in begun} <= {"closed", "freed"}
        attempts.must_be_typed()
        attempts.refused.clear()
        attempts.make_all()
        assert attempts.refused == []


def engine_of(client: Connection, session: Session) -> int:
    request = GetSessionRequest(name=session.name)
    return int(client.rpc.call(client.vm_sessions.GetSession, request).session.engine_pid)


def address_space(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


@pytest.mark.parametrize("engine", ["soft", "x86emu"])
def test_an_engine_that_cannot_map(core: RunningCore, engine: str) -> None:
    """The attachment is refused, the session goes on."""
    with connect(str(core.socket)) as client:
        session, ram = client.create_session(engine), client.create_ram(64 * MIB)
        pid = engine_of(client, session)
        before = books(client)
        little_more = limited(pid, resource.RLIMIT_AS, address_space(pid) + MIB)
        with little_more, pytest.raises(Refused) as refused:
            session.attach(ram, 0)
        assert (refused.value.reason, refused.value.metadata["errno"]) == ("MEMORY_FAILURE", "12")
        must_be_as_before(core, client, before)
        told = [(each.kind, each.cause) for each in client.history(ram.name).events]
        assert told[1:] == [("attached", "Attach"), ("detached", "it could not be mapped")]
        session.attach(ram, 0)
        assert engine_of(client, session) == pid


def test_memory_that_the_kernel_does_not_give(core: RunningCore) -> None:
    with connect(str(core.socket)) as client:
        before = books(client)
        with limited(core.process.pid, resource.RLIMIT_FSIZE, 16 * MIB):
            with pytest.raises(Refused) as refused:
                client.create_ram(64 * MIB)
            client.create_ram(MIB).close()
        assert refused.value.reason == "MEMORY_FAILURE"
        must_be_as_before(core, client, before)
