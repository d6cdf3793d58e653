"""A unary call on an idle core."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median, quantiles
from time import perf_counter_ns

from vmsession.v1 import core_pb2

from tests.benchmarks.echo import echo
from tests.benchmarks.result import Result
from tests.benchmarks.rounds import in_turns
from tests.benchmarks.workplace import Benchmark, Workplace
from tests.integration.running_core import Stubs

UNIT = "us"


class Calls:
    """Calls of one kind, timed one by one."""

    def __init__(self, call: Callable[[], object], count: int) -> None:
        self._call = call
        self._count = count
        self.p99: list[float] = []

    def median(self) -> float:
        """Of so many calls, in us; the 99th percentile is kept."""
        took = []
        for _ in range(self._count):
            start = perf_counter_ns()
            self._call()
            took.append((perf_counter_ns() - start) / 1000)
        self.p99.append(quantiles(took, n=100)[98])
        return median(took)


def measure(at: Workplace) -> list[Result]:
    """GetInfo, beside a gRPC server that does nothing and has no front door."""
    stubs = Stubs(at.socket)
    request = core_pb2.GetInfoRequest()
    with echo(at.directory) as server:
        floor = Calls(server.call, at.effort.few())
        ours = Calls(lambda: stubs.core.GetInfo(request), at.effort.few())
        samples = in_turns(at.effort.rounds, {"floor": floor.median, "ours": ours.median})
    stubs.close()
    return [
        Result.of("rpc.floor", UNIT, samples["floor"]),
        Result.compared("rpc.unary", UNIT, samples["ours"], "rpc.floor", samples["floor"]),
        Result.compared("rpc.unary.p99", UNIT, ours.p99, "rpc.floor.p99", floor.p99),
        Result.of("rpc.floor.p99", UNIT, floor.p99),
    ]


RPC = Benchmark(("rpc.floor", "rpc.unary", "rpc.unary.p99", "rpc.floor.p99"), measure)
