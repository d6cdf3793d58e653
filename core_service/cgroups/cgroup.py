"""The cgroup of one engine."""

from __future__ import annotations

import asyncio
import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from core_service.engine.protocol import CGROUP_FD

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

log = structlog.get_logger()

PAUSES: Final = (0.001, 0.01, 0.05, 0.2, 1.0, 3.0)
"""Seconds between tries: a process that ended leaves its cgroup an instant later, and so does the thread
of the kernel's that belongs to its VM."""


class Cgroup:
    """Belongs to its engine's process; its directory is there until `remove`. `memory` is its limit in
    bytes, None without one."""

    def __init__(self, path: Path, memory: int | None, thread: Executor) -> None:
        self._path = path
        self._memory = memory
        self._thread = thread

    def entrance(self) -> int:
        """An fd by which a process can enter it, of a number that is not an engine's channel. The caller
        closes it. Raises OSError."""
        fd = os.open(self._path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        try:
            return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, CGROUP_FD + 1)
        finally:
            os.close(fd)

    def out_of_memory(self) -> str:
        """Whether the kernel ended its engine for want of memory: whose; empty if it did not."""
        counts = {}
        with suppress(OSError):
            lines = (self._path / "memory.events").read_text().splitlines()
            counts = {name: int(count) for name, count in (line.split() for line in lines)}
        if not counts.get("oom_kill"):
            return ""
        if counts.get("oom"):
            return f"out of memory: its cgroup's limit of {self._memory} bytes"
        return "out of memory: the host, or a cgroup above its own"

    async def remove(self) -> None:
        """Once nothing is in it any more; it is tried for some seconds."""
        loop = asyncio.get_running_loop()
        why = ""
        for pause in (*PAUSES, 0.0):
            try:
                await loop.run_in_executor(self._thread, self._path.rmdir)
            except FileNotFoundError:
                return
            except OSError as error:
                why = str(error)
                await asyncio.sleep(pause)
            else:
                return
        log.warning("a cgroup stays", why=why)
