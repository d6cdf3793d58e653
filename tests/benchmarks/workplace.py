"""What the benchmarks share: one core, one connection to it, a directory for what they compile."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.benchmarks.result import Result
from tests.benchmarks.rounds import Effort
from tests.integration.running_core import RunningCore
from vmm_client import Connection, connect

POLICY: Final = """
[limits]
capabilities = 200_000
[[allow]]
client_capabilities = 100_000
"""
"""Attachments need no fd: an operator may allow more of them than core can have fds."""


@dataclass(frozen=True, slots=True)
class Workplace:
    """`engines` are those that start here."""

    socket: Path
    core: Connection
    engines: frozenset[str]
    directory: Path
    effort: Effort


@contextmanager
def workplace(effort: Effort) -> Iterator[Workplace]:
    """A core of its own, which ends in order with it."""
    with tempfile.NamedTemporaryFile("w", prefix="vmsession-bench-", suffix=".toml") as policy:
        policy.write(POLICY)
        policy.flush()
        running = RunningCore("--policy", policy.name)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="vmsession-bench-") as directory,
            connect(str(running.socket)) as core,
        ):
            engines = frozenset(engine.name for engine in core.engines() if engine.available)
            yield Workplace(running.socket, core, engines, Path(directory), effort)
        running.stop()
    finally:
        running.close()


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Measures the results `names` together; `engine` is what it cannot do without, if anything."""

    names: tuple[str, ...]
    measure: Callable[[Workplace], list[Result]]
    engine: str | None = None
