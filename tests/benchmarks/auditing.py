"""What the questions of operators take with much alive and far more in the past, and how soon 50
watchers are told of changes."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from pathlib import Path
from time import monotonic_ns
from typing import Final

from vmsession.v1.core_pb2 import GetInfoRequest
from vmsession.v1.core_pb2_grpc import CoreServiceStub

from core_service.audit.chain import Row, row_of
from core_service.audit.store import Store
from dataspace.record import EventKind
from tests.benchmarks.helper import Helper
from tests.benchmarks.result import Result
from tests.benchmarks.rounds import THOROUGH, in_turns
from tests.benchmarks.rpc import Calls
from tests.benchmarks.workplace import Benchmark, Workplace
from tests.integration.running_core import RunningCore
from tests.unit.audit_events import ALICE, Script, created
from vmm_client import Connection, connect

FLOOR: Final = "audit.floor"
MS: Final = 1000.0
ALIVE: Final = 10_000
HOARDERS: Final = 4
PAST: Final = 1_000_000
PAST_WHEN_QUICK: Final = 20_000
GROUP: Final = 1000
WATCHERS: Final = (*[4] * 12, 2)
CHANGES: Final = 500


def past(number: int) -> Iterator[Row]:
    """The events of so many dataspaces that are gone."""
    script = Script()
    for one in range(number):
        name = f"dataspaces/0000{one}"
        yield row_of(script(EventKind.CREATED, name, created(), actor=ALICE))
        yield row_of(script(EventKind.FREED, name, actor=ALICE, cause="freed by its owner"))


@contextmanager
def old_core(number: int) -> Iterator[Connection]:
    """A core with a past of so many dataspaces, and ALIVE ones held by other processes."""
    with tempfile.TemporaryDirectory(prefix="vmsession-bench-") as directory, ExitStack() as stack:
        log = Path(directory) / "audit"
        log.mkdir(mode=0o700)
        with closing(Store(log, "process", 2 * PAST, 0)) as store:
            rows = past(number)
            while group := list(islice(rows, GROUP)):
                store.append(group)
        running = RunningCore("--audit-directory", str(log))
        stack.callback(running.close)
        for _ in range(HOARDERS):
            command = [
                "-m",
                "tests.benchmarks.hoarder",
                str(running.socket),
                str(ALIVE // HOARDERS),
            ]
            hoarder = stack.enter_context(Helper([sys.executable, *command]))
            assert hoarder.answer() == "ready\n"
        yield stack.enter_context(connect(str(running.socket)))


def measure_questions(at: Workplace) -> list[Result]:
    """Each beside a call that asks for nothing."""
    number = PAST if at.effort is THOROUGH else PAST_WHEN_QUICK
    with old_core(number) as core:
        stub = CoreServiceStub(core.rpc.channel)
        gone = f"dataspaces/0000{number // 2}"
        asked: dict[str, Callable[[], object]] = {
            FLOOR: lambda: stub.GetInfo(GetInfoRequest()),
            "audit.list_a_page": lambda: list(islice(core.records(), 1000)),
            "audit.list_alive": lambda: list(core.records(alive_only=True)),
            "audit.history_of_the_gone": lambda: core.history(gone),
            "audit.totals": core.totals,
            "audit.totals_by_uid": lambda: core.totals("uid"),
            "audit.verify": core.verify,
        }
        calls = {name: Calls(call, 4) for name, call in asked.items()}
        samples = in_turns(at.effort.rounds, {name: one.median for name, one in calls.items()})
    floor = [us / MS for us in samples.pop(FLOOR)]
    return [
        Result.of(FLOOR, "ms", floor),
        *(
            Result.compared(name, "ms", [us / MS for us in ours], FLOOR, floor)
            for name, ours in samples.items()
        ),
    ]


def measure_watching(at: Workplace) -> list[Result]:
    """From the first change to the moment when the last of 50 watchers has seen the last."""
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                Helper([sys.executable, "-m", "tests.benchmarks.watchers", at.socket, str(watches)])
            )
            for watches in WATCHERS
        ]
        for process in processes:
            assert process.answer() == "ready\n"
        rates = [_told_a_second(at.core, processes) for _ in range(max(3, at.effort.rounds // 3))]
    return [Result.of("audit.events_to_50_watchers", "events/s", rates)]


def _told_a_second(core: Connection, processes: list[Helper]) -> float:
    before, start = core.totals().revision, monotonic_ns()
    for _ in range(CHANGES // 2):
        core.create_ram(4096).close()
    last = core.totals().revision
    for process in processes:
        process.tell(str(last))
    end = max(int(process.answer()) for process in processes)
    return (last - before) * sum(WATCHERS) / ((end - start) / 1e9)


QUESTIONS: Final = Benchmark(
    (
        FLOOR,
        "audit.list_a_page",
        "audit.list_alive",
        "audit.history_of_the_gone",
        "audit.totals",
        "audit.totals_by_uid",
        "audit.verify",
    ),
    measure_questions,
)
WATCHING: Final = Benchmark(("audit.events_to_50_watchers",), measure_watching)
