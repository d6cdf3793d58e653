"""An exit over a HandleExits stream, with generated stubs alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter_ns

from vmsession.v1 import dataspace_pb2, vcpu_pb2, vm_session_pb2

from tests.benchmarks.echo import Echo, echo
from tests.benchmarks.guest import OUT_LOOP
from tests.benchmarks.result import Result
from tests.benchmarks.rounds import in_turns
from tests.benchmarks.workplace import Benchmark, Workplace
from tests.integration.running_core import Stubs
from tests.integration.stream_vmm import StreamVmm

UNIT = "us"


@contextmanager
def stream_vmm(stubs: Stubs, engine: str) -> Iterator[StreamVmm]:
    """One whose guest, in real mode, is at its first port I/O."""
    vmm = StreamVmm(stubs, engine, OUT_LOOP)
    vmm.start()
    yield vmm
    vmm.end_stream()
    stubs.vm.DeleteSession(vm_session_pb2.DeleteSessionRequest(name=vmm.session))
    stubs.dataspaces.FreeDataspace(dataspace_pb2.FreeDataspaceRequest(name=vmm.dataspace))


def exits(stubs: Stubs, engine: str, count: int) -> float:
    """A new stream each time: microseconds an exit."""
    with stream_vmm(stubs, engine) as vmm:
        exit_ = vmm.next()
        start = perf_counter_ns()
        for _ in range(count):
            assert exit_.reason == vcpu_pb2.EXIT_REASON_PORT
            vmm.reply(vcpu_pb2.Reply(sequence=exit_.sequence))
            exit_ = vmm.next()
        return (perf_counter_ns() - start) / 1000 / count


def echoes(server: Echo, count: int) -> float:
    """The same with a stream that only echoes."""
    stream = server.stream()
    stream.exchange()
    start = perf_counter_ns()
    for _ in range(count):
        stream.exchange()
    took = perf_counter_ns() - start
    stream.close()
    return took / 1000 / count


def measure(at: Workplace) -> list[Result]:
    """Every engine, beside gRPC's own cost."""
    count = at.effort.few()
    engines = [engine for engine in ("kvm", "soft") if engine in at.engines]
    stubs = Stubs(at.socket)
    with echo(at.directory) as server:
        samples = in_turns(
            at.effort.rounds,
            {
                "floor": lambda: echoes(server, count),
                **{engine: partial(exits, stubs, engine, count) for engine in engines},
            },
        )
    stubs.close()
    floor = "stream.floor"
    names = {f"stream.port_exit.{engine}": engine for engine in engines}
    return [
        Result.of(floor, UNIT, samples["floor"]),
        *(
            Result.compared(name, UNIT, samples[engine], floor, samples["floor"])
            for name, engine in {"stream.port_exit": engines[0], **names}.items()
        ),
    ]


STREAM = Benchmark(
    ("stream.floor", "stream.port_exit", "stream.port_exit.kvm", "stream.port_exit.soft"), measure
)
