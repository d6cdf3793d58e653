"""What /proc tells of an engine's threads. They name themselves: an engine can lie about its vCPUs."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

OTHER_THREADS: Final = 2  # control and kicker
VCPU: Final = "vcpu "  # the name of a vCPU's thread, and then its index


def run_times(pid: int, max_vcpus: int) -> dict[int, int]:
    """Nanoseconds of CPU time of a child's vCPU threads, by index: the first number of schedstat.

    Those that cannot be read are left out (hidepid of proc(5); a kernel without CONFIG_SCHED_INFO). The
    child is not reaped, so that its id is its own. No more threads are looked at than it may have.
    """
    times: dict[int, int] = {}
    with suppress(OSError), os.scandir(f"/proc/{pid}/task") as tasks:
        for task in islice(tasks, max_vcpus + OTHER_THREADS):
            with suppress(OSError, ValueError):  # the thread ended, or has another name
                name = Path(task.path, "comm").read_text().rstrip("\n")
                if name.startswith(VCPU):
                    index = int(name.removeprefix(VCPU))
                    times[index] = int(Path(task.path, "schedstat").read_text().split()[0])
    return times
