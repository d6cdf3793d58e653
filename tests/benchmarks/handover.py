"""The handover: from the engine's side of a page to the VMM's and back, with no guest in between.

The engine's side is a C process of its own (native/page_engine.c), which also takes the time.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from statistics import median

from dataspace.memory import ram
from dataspace.vcpu_page import PAGE_BYTES, Reason
from tests.benchmarks.c_vmm import SPIN_NS, c_vmm, load_c_vmm
from tests.benchmarks.guest import Guest
from tests.benchmarks.helper import Helper, compile_helper
from tests.benchmarks.result import Result
from tests.benchmarks.rounds import in_turns
from tests.benchmarks.workplace import Benchmark, Workplace
from tests.unit.client_scripted_engine import Owner
from vmm_client import Vcpu
from vmm_client.page import Page

UNIT = "us"


class EngineSide(Owner):
    """Plays the engine, and owns nothing of the vCPU's."""

    def __init__(self, process: Helper) -> None:
        super().__init__()
        self._process = process
        self.p99: dict[str, list[float]] = {}

    def check_alive(self) -> None:
        """Raises HelperError if the process ended."""
        self._process.check_alive()

    def timed(self, name: str, command: str, serve: Callable[[], object]) -> float:
        """Have the engine's side give exits while `serve` takes them: the median round trip in us.
        The 99th percentile is kept by name."""
        self._process.tell(command)
        serve()
        p50, p99 = map(int, self._process.answer().split())
        self.p99.setdefault(name, []).append(p99 / 1000)
        return p50 / 1000


@contextmanager
def engine_side(at: Workplace) -> Iterator[tuple[EngineSide, Guest]]:
    """Both sides of one page, the vCPU at its first port I/O."""
    memory = ram(PAGE_BYTES, "bench")
    fd = memory.open(writable=True)
    try:
        player = compile_helper("page_engine.c", at.directory)
        with Helper([player, str(fd)], pass_fds=[fd]) as process:
            assert process.answer() == "ready\n"
            side = EngineSide(process)
            vcpu = Vcpu("bench", Page(mmap.mmap(fd, PAGE_BYTES)), side)
            exits = vcpu.exits()
            side.timed("", f"exits 2 {SPIN_NS}", lambda: list(islice(exits, 2)))
            assert vcpu.exit.reason is Reason.PORT
            yield side, Guest(vcpu, exits)
            exits.close()
            vcpu.close()
    finally:
        os.close(fd)
        memory.close()


def measure(at: Workplace) -> list[Result]:
    """Python and C beside the bare counters; and C that sleeps at once, on both sides."""
    count, few = at.effort.exits, at.effort.few()
    library = load_c_vmm(at.directory)
    with engine_side(at) as (side, running), c_vmm(library, running.vcpu) as in_c:
        spinning = f"exits {count} {SPIN_NS}"
        samples = in_turns(
            at.effort.rounds,
            {
                "floor": lambda: side.timed(
                    "floor", f"words {count} 0", lambda: in_c.serve_words(count)
                ),
                "c": lambda: side.timed("c", spinning, lambda: in_c.serve(count)),
                "python": lambda: side.timed("python", spinning, lambda: running.serve(count)),
                "sleeping": lambda: side.timed(
                    "sleeping", f"exits {few} 0", lambda: in_c.serve(few, spin_ns=0)
                ),
            },
        )
        floor = "handover.floor"
        results = [Result.of(floor, UNIT, samples["floor"])]
        for name in ("c", "python", "sleeping"):
            results += [
                Result.compared(f"handover.{name}", UNIT, samples[name], floor, samples["floor"]),
                Result(f"handover.{name}.p99", median(side.p99[name]), UNIT),
            ]
        return results


HANDOVER = Benchmark(
    (
        "handover.floor",
        *(
            f"handover.{name}{percentile}"
            for name in ("c", "python", "sleeping")
            for percentile in ("", ".p99")
        ),
    ),
    measure,
)
