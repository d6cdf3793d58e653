"""A run of the benchmarks, from the command line to the report."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from tests.benchmarks import (
    attaching,
    auditing,
    crowd,
    handover,
    opening,
    port_exit,
    reclaiming,
    recording,
    rpc,
    speed,
    state,
    stream,
    throughput,
)
from tests.benchmarks.report import print_table, write_json
from tests.benchmarks.result import Result
from tests.benchmarks.rounds import QUICK, THOROUGH
from tests.benchmarks.workplace import Benchmark, Workplace, workplace

OUTPUT: Final = Path("bench.json")
BENCHMARKS: Final = (
    port_exit.KVM,
    port_exit.SOFT,
    state.KVM,
    state.SOFT,
    handover.HANDOVER,
    opening.KVM,
    opening.SOFT,
    rpc.RPC,
    stream.STREAM,
    speed.SOFT,
    throughput.KVM,
    throughput.SOFT,
    attaching.BARE,
    attaching.KVM,
    attaching.SOFT,
    recording.RECORDING,
    reclaiming.KVM,
    reclaiming.SOFT,
    auditing.QUESTIONS,
    auditing.WATCHING,
    crowd.KVM,
    crowd.SOFT,
)


def main(arguments: list[str] | None = None) -> int:
    """Measure and report: 0, or 1 when nothing was measured."""
    options = _parser().parse_args(arguments)
    chosen = [benchmark for benchmark in BENCHMARKS if _matches(benchmark, options.only)]
    if not chosen:
        say(f"no benchmark matches {options.only!r}")
        return 1
    with workplace(QUICK if options.quick else THOROUGH) as at:
        say(f"{os.cpu_count()} cores, engines {', '.join(sorted(at.engines))}")
        results = list(run(chosen, at))
    print_table(results, sys.stdout)
    write_json(results, OUTPUT)
    say(f"wrote {OUTPUT}")
    return 0 if results else 1


def run(chosen: list[Benchmark], at: Workplace) -> Iterator[Result]:
    """Every benchmark that this machine can run."""
    for number, benchmark in enumerate(chosen, 1):
        title = f"[{number}/{len(chosen)}] {', '.join(benchmark.names)}"
        if benchmark.engine and benchmark.engine not in at.engines:
            say(f"{title}: skipped, engine {benchmark.engine} does not start here")
            continue
        say(f"{title}; load {os.getloadavg()[0]:.1f}")
        yield from benchmark.measure(at)


def say(text: str) -> None:
    """Progress: standard output is for the table."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _matches(benchmark: Benchmark, pattern: str) -> bool:
    return any(fnmatchcase(name, f"*{pattern}*") for name in benchmark.names)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.py", description="Measure what exits cost here.")
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        default="",
        help="the benchmarks that measure a name with this in it; *, ? and [] as in a shell",
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    return parser
