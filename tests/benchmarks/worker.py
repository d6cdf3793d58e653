"""A VMM process that serves one vCPU for as long as it is told: a line `SECONDS` on standard input is
answered by `EXITS NANOSECONDS`."""

from __future__ import annotations

import sys
from time import perf_counter_ns
from typing import Final

from tests.benchmarks.guest import Guest, guest
from vmm_client import connect

EXITS_AT_ONCE: Final = 100  # between two looks at the clock


def serve_for(running: Guest, seconds: float) -> tuple[int, int]:
    """The exits served, and the nanoseconds that they took."""
    start = now = perf_counter_ns()
    end = start + int(seconds * 1e9)
    exits = 0
    while now < end:
        running.serve(EXITS_AT_ONCE)
        exits += EXITS_AT_ONCE
        now = perf_counter_ns()
    return exits, now - start


def main() -> None:
    """The process itself: `worker SOCKET ENGINE`."""
    socket, engine = sys.argv[1:]
    with connect(socket) as core, guest(core, engine) as running:
        print("ready", flush=True)
        for line in sys.stdin:
            print(*serve_for(running, float(line)), flush=True)


if __name__ == "__main__":
    main()
