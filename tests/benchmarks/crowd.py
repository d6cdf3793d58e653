"""A core with its keeper, 200 clients and 400 virtual machines: what each costs in memory, and what a
call takes while the others are idle, and while eight more take exits as fast as they can."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import quantiles
from time import monotonic, perf_counter_ns
from typing import Final

from vmsession.v1.vm_session_pb2 import GetSessionRequest

from tests.benchmarks.crowd_members import machine
from tests.benchmarks.helper import Helper
from tests.benchmarks.result import Result
from tests.benchmarks.rounds import THOROUGH
from tests.benchmarks.workplace import Benchmark, Workplace
from tests.integration.running_core import OTHER_USER, RunningCore
from tests.integration.test_adoption import keeper_of
from vmm_client import Connection, Session, connect

USERS: Final = 4
CLIENTS: Final = 200
SESSIONS: Final = 2  # of each client
BUSY: Final = 8
SECONDS: Final = 20.0
SECONDS_WHEN_QUICK: Final = 4.0
CLIENTS_WHEN_QUICK: Final = 20
PAGE: Final = 4096
DEEDS: Final = ("question", "change")
PARTS: Final = (50, 99)
MIB: Final = 1024.0  # kB of smaps_rollup


class Probe:
    """A client that does nothing but measure calls."""

    def __init__(self, core: Connection, session: Session) -> None:
        self._core = core
        self._request = GetSessionRequest(name=session.name)

    def samples(self, seconds: float) -> tuple[list[int], list[int]]:
        """Nanoseconds of questions, and of changes: memory allocated and freed."""
        asking: list[int] = []
        changing: list[int] = []
        end = monotonic() + seconds
        while monotonic() < end:
            start = perf_counter_ns()
            self._core.rpc.call(self._core.vm_sessions.GetSession, self._request)
            between = perf_counter_ns()
            self._core.create_ram(PAGE).close()
            asking.append(between - start)
            changing.append((perf_counter_ns() - between) // 2)
        return asking, changing


def measure(engine: str, at: Workplace) -> list[Result]:
    """Alone, among the idle, among the busy."""
    thorough = at.effort is THOROUGH
    clients = CLIENTS if thorough else CLIENTS_WHEN_QUICK
    seconds = SECONDS if thorough else SECONDS_WHEN_QUICK
    with ExitStack() as stack:
        running = RunningCore("--keep", "60")
        stack.callback(running.close)
        stack.callback(running.stop)  # whom a kill would leave to the keeper
        core = stack.enter_context(connect(str(running.socket)))
        probe = Probe(core, machine(core, engine))
        alone = probe.samples(seconds / 4)
        before, engines = core_kib(running), set(running.engine_pids())
        crowd = list(_crowd(stack, running, engine, clients))
        memory = _session_kib(running, before, engines)
        idle = probe.samples(seconds)
        longest_idle = _longest_wait(crowd)
        busy, rates = _among_the_busy(stack, running, engine, probe, seconds)
        longest_busy = _longest_wait(crowd)
    name = f"crowd.{engine}"
    return [
        *([Result(f"{name}.session_memory", memory / MIB, "MiB")] if memory else []),
        *_calls(f"{name}.alone", alone),
        *_calls(f"{name}.idle", idle),
        *_calls(f"{name}.busy", busy),
        Result(f"{name}.idle.longest_of_any", longest_idle, "ms"),
        Result(f"{name}.busy.longest_of_any", longest_busy, "ms"),
        Result(f"{name}.busy.exits", sum(rates), "exits/s"),
        Result(f"{name}.busy.least_of_mean", min(rates) * len(rates) / sum(rates), ""),
    ]


def _crowd(stack: ExitStack, running: RunningCore, engine: str, clients: int) -> Iterator[Helper]:
    command = [sys.executable, "-m", "tests.benchmarks.crowd_members", str(running.socket), engine]
    for user in range(USERS):
        amounts = [str(OTHER_USER + user), str(clients // USERS), str(SESSIONS)]
        crowd = stack.enter_context(Helper([*command, *amounts]))
        assert crowd.answer() == "ready\n"
        yield crowd


def _longest_wait(crowd: list[Helper]) -> float:
    """Milliseconds that a client of the crowd waited at most for an answer since this was asked last."""
    return max(int(member.ask("")) for member in crowd) / 1000


def _among_the_busy(
    stack: ExitStack, running: RunningCore, engine: str, probe: Probe, seconds: float
) -> tuple[tuple[list[int], list[int]], list[float]]:
    command = [sys.executable, "-m", "tests.benchmarks.worker", str(running.socket), engine]
    fleet = [stack.enter_context(Helper(command)) for _ in range(BUSY)]
    for worker in fleet:
        assert worker.answer() == "ready\n"
    for worker in fleet:
        worker.tell(str(seconds + 1))
    samples = probe.samples(seconds)
    answers = [tuple(map(int, worker.answer().split())) for worker in fleet]
    return samples, [exits * 1e9 / nanoseconds for exits, nanoseconds in answers]


def core_kib(running: RunningCore) -> int:
    """Core's proportional set size with its keeper's; 0 where only root may look."""
    return _pss_kib(running.process.pid) + _pss_kib(keeper_of(running))


def _session_kib(running: RunningCore, before: int, engines: set[int]) -> float:
    """Of each new session: its engine, and its share of what core and its keeper grew by."""
    mine = set(running.engine_pids()) - engines
    return (core_kib(running) - before + sum(map(_pss_kib, mine))) / len(mine)


def _pss_kib(pid: int) -> int:
    if os.geteuid() != 0:
        return 0
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))


def _calls(name: str, samples: tuple[list[int], list[int]]) -> Iterator[Result]:
    for deed, took in zip(DEEDS, samples, strict=True):
        for part in PARTS:
            yield Result(f"{name}.{deed}_p{part}", quantiles(took, n=100)[part - 1] / 1e6, "ms")


def _benchmark(engine: str) -> Benchmark:
    calls = [
        f"{when}.{deed}_p{part}"
        for when in ("alone", "idle", "busy")
        for deed in DEEDS
        for part in PARTS
    ]
    others = ("idle.longest_of_any", "busy.longest_of_any", "busy.exits", "busy.least_of_mean")
    names = tuple(f"crowd.{engine}.{name}" for name in ("session_memory", *calls, *others))
    return Benchmark(names, partial(measure, engine), engine)


KVM = _benchmark("kvm")
SOFT = _benchmark("soft")
