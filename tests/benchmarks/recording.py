"""What it costs a call that its changes are recorded before it is answered: on an idle core, by the
durability of the log."""

from __future__ import annotations

from typing import Final

from vmsession.v1 import dataspace_pb2

from tests.benchmarks.result import Result
from tests.benchmarks.rounds import in_turns
from tests.benchmarks.rpc import Calls
from tests.benchmarks.workplace import Benchmark, Workplace
from tests.integration.running_core import RunningCore, Stubs

PAGE: Final = 4096
UNIT: Final = "us"


class Changes:
    """A client that makes and frees memory: two calls with one event each."""

    def __init__(self, stubs: Stubs) -> None:
        self._stubs = stubs.dataspaces

    def change(self) -> None:
        """Two calls."""
        made = self._stubs.CreateDataspace(dataspace_pb2.CreateDataspaceRequest(size=PAGE))
        request = dataspace_pb2.FreeDataspaceRequest(name=made.dataspace.name)
        self._stubs.FreeDataspace(request)

    def look(self) -> None:
        """Two calls without an event, as long a way."""
        self._stubs.ListDataspaces(dataspace_pb2.ListDataspacesRequest())
        self._stubs.ListDataspaces(dataspace_pb2.ListDataspacesRequest())


def measure(at: Workplace) -> list[Result]:
    """Two changes that survive the process, or the power, beside two calls that change nothing."""
    durable = RunningCore("--audit-durability", "power", "--grace", "3600")  # stubs have no lease
    stubs, durable_stubs = Stubs(at.socket), Stubs(durable.socket)
    try:
        count = at.effort.few() // 2
        samples = in_turns(
            at.effort.rounds,
            {
                "floor": Calls(Changes(stubs).look, count).median,
                "process": Calls(Changes(stubs).change, count).median,
                "power": Calls(Changes(durable_stubs).change, count).median,
            },
        )
    finally:
        durable_stubs.close()
        stubs.close()
        durable.close()
    floor = "two_calls.floor"
    return [
        Result.of(floor, UNIT, samples["floor"]),
        *(
            Result.compared(f"two_changes.{name}", UNIT, samples[name], floor, samples["floor"])
            for name in ("process", "power")
        ),
    ]


RECORDING = Benchmark(("two_calls.floor", "two_changes.process", "two_changes.power"), measure)
