"""Exits a second of many virtual machines at once, each with a VMM process of its own."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

from tests.benchmarks.helper import Helper
from tests.benchmarks.result import Result
from tests.benchmarks.rounds import in_turns
from tests.benchmarks.workplace import Benchmark, Workplace

COUNTS: Final = (1, 2, 4, 16)
BASELINE: Final = 2  # busy processes on both sides of a page fill the smallest machine
ROUNDS_AT_LEAST: Final = 3


def rate(workers: list[Helper], seconds: float) -> float:
    """Have them all serve for so long: their exits a second, in sum."""
    for worker in workers:
        worker.tell(str(seconds))
    total = 0.0
    for worker in workers:
        exits, nanoseconds = map(int, worker.answer().split())
        total += exits * 1e9 / nanoseconds
    return total


def measure(engine: str, at: Workplace) -> list[Result]:
    """One fleet, of which some serve in each turn."""
    with ExitStack() as stack:
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "tests.benchmarks.worker",
            at.socket,
            engine,
        ]
        fleet = [stack.enter_context(Helper(command)) for _ in range(max(COUNTS))]
        for worker in fleet:
            assert worker.answer() == "ready\n"
        samples = in_turns(
            max(at.effort.rounds // 3, ROUNDS_AT_LEAST),
            {str(n): partial(rate, fleet[:n], at.effort.seconds) for n in COUNTS},
        )
    baseline = _name(engine, BASELINE)
    return [
        Result.of(baseline, "exits/s", samples[str(n)])
        if n == BASELINE
        else Result.compared(
            _name(engine, n), "exits/s", samples[str(n)], baseline, samples[str(BASELINE)]
        )
        for n in COUNTS
    ]


def _name(engine: str, vcpus: int) -> str:
    return f"{engine}.exits_per_second.{vcpus}_vcpus"


def _benchmark(engine: str) -> Benchmark:
    return Benchmark(tuple(_name(engine, n) for n in COUNTS), partial(measure, engine), engine)


KVM = _benchmark("kvm")
SOFT = _benchmark("soft")
