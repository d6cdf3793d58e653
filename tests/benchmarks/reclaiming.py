"""How long after the death of a VMM process everything of it is gone: by the log, from the kill to the
end of the client."""

from __future__ import annotations

import sys
from functools import partial
from time import monotonic_ns

from tests.benchmarks.helper import Helper
from tests.benchmarks.result import Result
from tests.benchmarks.workplace import Benchmark, Workplace
from vmm_client import Connection


def reclaim(at: Workplace, engine: str) -> float:
    """One death, in ms."""
    with Helper([sys.executable, "-m", "tests.benchmarks.mortal", at.socket, engine]) as mortal:
        assert mortal.answer() == "ready\n"
        revision = at.core.totals().revision
        killed = monotonic_ns()
    return (_end_of_client(at.core, revision) - killed) / 1e6


def _end_of_client(core: Connection, revision: int) -> int:
    """CLOCK_MONOTONIC of it."""
    watching = core.watch(revision)
    try:
        for told in watching:
            if told.event.kind == "closed" and told.event.subject.startswith("clients/"):
                return told.event.monotonic_ns
    finally:
        watching.close()
    raise AssertionError("core ended")


def measure(engine: str, at: Workplace) -> list[Result]:
    """The process's own end is part of it."""
    samples = [reclaim(at, engine) for _ in range(max(3, at.effort.rounds // 3))]
    return [Result.of(f"{engine}.reclaim", "ms", samples)]


KVM = Benchmark(("kvm.reclaim",), partial(measure, "kvm"), engine="kvm")
SOFT = Benchmark(("soft.reclaim",), partial(measure, "soft"), engine="soft")
