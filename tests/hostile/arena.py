"""A core that is attacked, and what must be true of it afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from core_service.readers import READERS
from tests.hostile.figures import Figures
from tests.hostile.witness import Sight, Witness
from tests.integration.lives.left import (
    LEFT_SECONDS,
    core_digits,
    left_in_core,
    left_on_host,
)
from tests.integration.lives.traces import Traces, look
from tests.integration.running_core import RunningCore, Stubs
from tests.integration.waiting import eventually

MIB: Final = 1 << 20
WORST_SECONDS: Final = 5.0  # the longest that anybody waits for an answer, on two busy processors
GROWTH: Final = 160 * MIB  # what core remembers of 10,000 events, and what its allocator keeps
TROUBLE: Final = ("defect", "Traceback", "Unexpected <class", "never retrieved", "Fatal error")


class Arena:
    """A core with an operator's eye on it, and a witness while it is attacked."""

    def __init__(self, core: RunningCore, figures: Figures) -> None:
        self.core = core
        self.figures = figures
        self._stubs = Stubs(core.socket)
        self._digits = core_digits(self._stubs)
        self._stubs.verify()  # starts what serves questions to the log
        self._before = self._look()
        self._resident = resident(core.process.pid)

    @contextmanager
    def attacked(self) -> Iterator[Witness]:
        """While the block runs, the witness is served. After it, nothing is left of anybody."""
        witness = Witness(self.core.socket)
        began = time.monotonic()
        try:
            yield witness
            self._stood_by(witness.end())
        finally:
            witness.close()
        self.figures.numbers["seconds"] = time.monotonic() - began
        self._must_be_as_before()

    def _stood_by(self, sight: Sight) -> None:
        self.figures.numbers["the witness's calls"] = sight.calls
        self.figures.numbers["the witness's longest, seconds"] = sight.worst
        assert sight.wrong == [], f"{sight.wrong}\n{self.core.log()}"
        assert sight.calls > 0
        assert sight.worst < WORST_SECONDS

    def _must_be_as_before(self) -> None:
        assert self.core.process.poll() is None, self.core.log()
        eventually(lambda: not self._left(), lambda: f"left: {self._left()}", LEFT_SECONDS)
        self.core.must_agree()
        growth = resident(self.core.process.pid) - self._resident
        self.figures.numbers["core's memory, bytes more"] = growth
        assert growth < GROWTH
        for trouble in TROUBLE:
            assert trouble not in self.core.log(), self.core.log()[-20_000:]

    def _left(self) -> list[str]:
        return [*left_in_core(self._stubs), *left_on_host(self._before, self._look())]

    def _look(self) -> Traces:
        """SQLite keeps fds of the log's file for the next reader, as many as there were readers at once:
        they would close the writer's lock (https://www.sqlite.org/howtocorrupt.html, 2.2)."""
        traces = look(self.core.process.pid, self._digits)
        log = [what for what in traces.fds if what.endswith(".sqlite")]
        assert sum(traces.fds[what] for what in log) <= 1 + READERS + 1
        return replace(traces, fds={what: n for what, n in traces.fds.items() if what not in log})

    def close(self) -> None:
        """The operator leaves."""
        self._stubs.close()


def resident(pid: int) -> int:
    """Bytes of memory that a process uses."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024
