"""What is written into the files of an engine's cgroup (cgroups(7), the kernel's cgroup-v2.rst)."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from core_service.allotment import Allotment, listed

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

CONTROLLERS: Final = ("memory", "cpu", "cpuset", "pids")
PERIOD: Final = 100_000  # microseconds
OPTIONAL: Final = frozenset({"memory.swap.max"})  # there where the kernel has swap


def limits(allotment: Allotment, controllers: Collection[str]) -> dict[str, str]:
    """Content by name of file, by what these controllers can. What is not limited is left as the kernel
    made it."""
    written = {}
    if "memory" in controllers:
        written["memory.oom.group"] = "1"
        if allotment.memory is not None:
            # Without swap: a guest that takes too much is to be ended, not to have the host's disk.
            written["memory.swap.max"] = "0"
            written["memory.max"] = str(allotment.memory)
    if "cpu" in controllers:
        written["cpu.weight.nice"] = str(allotment.priority)
        if allotment.cpu is not None:
            written["cpu.max"] = f"{allotment.cpu * PERIOD // 100} {PERIOD}"
    if "cpuset" in controllers and allotment.cpus:
        written["cpuset.cpus"] = listed(allotment.cpus)
    if "pids" in controllers:
        written["pids.max"] = str(allotment.threads)
    return written


def limit(cgroup: Path, allotment: Allotment, controllers: Collection[str]) -> None:
    """Write them. Raises OSError."""
    for name, content in limits(allotment, controllers).items():
        if name in OPTIONAL:
            with suppress(FileNotFoundError):
                write(cgroup / name, content)
        else:
            write(cgroup / name, content)


def write(file: Path, content: str) -> None:
    """In one call, as the kernel takes it; the file must be there. Raises OSError."""
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, content.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{file}, written {content!r}") from error
    finally:
        os.close(fd)
