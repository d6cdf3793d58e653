"""The birth of an engine process, and its end."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from core_service.engine.protocol import CGROUP_FD, CHANNEL_FD

if TYPE_CHECKING:
    from core_service.cgroups import Cgroup


def spawn(
    executable: Path, environment: dict[str, str], channel: int, cgroup: Cgroup | None = None
) -> int:
    """Start an engine on its end of the channel. It gets a session of its own, so that a terminal's
    signals do not reach it; what it prints before it is confined goes to core's log. It enters its
    cgroup itself, before all else. Raises OSError."""
    if cgroup is None:
        return _spawn(executable, environment, [(channel, CHANNEL_FD)])
    entrance = cgroup.entrance()
    try:
        told = environment | {"VMSESSION_CGROUP": "1"}
        return _spawn(executable, told, [(channel, CHANNEL_FD), (entrance, CGROUP_FD)])
    finally:
        os.close(entrance)


def _spawn(executable: Path, environment: dict[str, str], fds: list[tuple[int, int]]) -> int:
    return os.posix_spawn(
        executable,
        [executable.name],
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, 2, 1),
            *((os.POSIX_SPAWN_DUP2, ours, its) for ours, its in fds),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM],
    )


def open_pidfd(pid: int) -> int:
    """A pidfd of a child; one that cannot have any is ended. Raises OSError."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def reap(pid: int) -> str:
    """How a child ended."""
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"killed by signal {number} ({signal.strsignal(number)})"
    return f"ended with status {os.WEXITSTATUS(status)}"
