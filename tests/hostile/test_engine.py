"""Engines that are core's enemies: each ends, and its session with it, in bounded time; nobody else
notices, and core holds nothing of what they sent.

The long form takes VMSESSION_SOAK_SECONDS (120), and up to 25 more for engines that do not end.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from vmsession.v1 import dataspace_pb2, vm_session_pb2

from tests.hostile.arena import TROUBLE, Arena
from tests.hostile.attackers import attack
from tests.hostile.budget import Budget
from tests.hostile.figures import Figures
from tests.hostile.other_engines import core_with, install, install_own
from tests.integration.running_core import RunningCore, Stubs

HOSTILE = "x86emu"
USERS = 2
MACHINES = 8
BEGINS_SECONDS = 35.0  # an adopted engine has 10 s for each of two things, and some end within 5 s
VERIFIED_SECONDS = (
    60.0  # it looks again for 30 s at what does not agree, and waits 10 s for an engine
)


class Operator:
    """Has core verified again and again, while engines lie about what they have mapped."""

    def __init__(self, core: RunningCore) -> None:
        self.looks = 0
        self.worst = 0.0
        self._stubs = Stubs(core.socket)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._main)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """While the block runs."""
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._thread.join()
            self._stubs.close()

    def _main(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            self._stubs.verify()
            self.worst = max(self.worst, time.monotonic() - began)
            self.looks += 1
            self._over.wait(0.2)


def installed(directory: Path, seed: str, *brief: str) -> Path:
    """Where the engines are: one that works, and one that is hostile."""
    engines, numbers = directory / "engines", directory / "numbers"
    engines.mkdir()
    numbers.mkdir()
    install_own(engines, "soft")
    module = "tests.hostile.hostile_engine"
    install(engines, HOSTILE, sys.executable, "-m", module, seed, numbers, *brief)
    return engines


def campaign(budget: Budget, directory: Path, *brief: str) -> Figures:
    """Two users, each with several machines at once."""
    figures = Figures("engine", budget.seed)
    core = core_with(installed(directory, budget.seed, *brief))
    try:
        arena, operator = Arena(core, figures), Operator(core)
        try:
            with arena.attacked(), operator.looking():
                each = [(HOSTILE,)] * USERS
                figures.outcomes = attack(core, "tests.hostile.engine_user", budget, each)
        finally:
            arena.close()
        core.stop()
    finally:
        core.close()
    figures.numbers["verifications"] = operator.looks
    figures.numbers["longest verification, seconds"] = operator.worst
    assert operator.looks > 0
    assert operator.worst < VERIFIED_SECONDS
    return figures


def test_engines_that_are_hostile(tmp_path: Path) -> None:
    figures = campaign(Budget.short(3), tmp_path, "brief")
    assert figures.outcomes["machines"] > 0
    assert figures.outcomes["ENGINE_DIED"] > 0


def open_machines(core: RunningCore) -> int:
    """Sessions with vCPUs and memory, as far as their engines let them."""
    stubs, opened = Stubs(core.socket), 0
    memory = dataspace_pb2.CreateDataspaceRequest(size=4096)
    for _ in range(MACHINES):
        with suppress(grpc.RpcError):
            create = vm_session_pb2.CreateSessionRequest(engine=HOSTILE)
            name = stubs.vm.CreateSession(create).session.name
            opened += 1
            stream = vm_session_pb2.TRANSPORT_STREAM
            vcpu = vm_session_pb2.CreateVcpuRequest(session=name, transport=stream)
            stubs.vm.CreateVcpu(vcpu, timeout=1)
            ram = stubs.dataspaces.CreateDataspace(memory).dataspace.name
            attach = vm_session_pb2.AttachRequest(session=name, dataspace=ram)
            stubs.vm.Attach(attach, timeout=1)
    stubs.close()
    return opened


@pytest.mark.soak
def test_the_next_core_serves_whatever_engines_say(tmp_path: Path) -> None:
    """Half a minute, mostly for engines that answer nothing."""
    budget = Budget.soak()
    core = core_with(installed(tmp_path, budget.seed), "--keep", "60", "--grace", "60")
    try:
        for _ in range(2):
            assert open_machines(core) > 0
            began = time.monotonic()
            core.restart(signal.SIGKILL)
            assert time.monotonic() - began < BEGINS_SECONDS
            assert not any(trouble in core.log() for trouble in TROUBLE), core.log()
        core.stop()
    finally:
        core.close()


@pytest.mark.soak
def test_engines_that_are_hostile_for_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = campaign(Budget.soak(), tmp_path)
    with capsys.disabled():
        print(figures.publish())
