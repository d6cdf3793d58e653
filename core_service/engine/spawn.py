"""The birth of an engine process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from core_service.engine.protocol import CHANNEL_FD


def spawn(executable: Path, environment: dict[str, str], channel: int) -> int:
    """Start an engine on its end of the channel. It gets a session of its own, so that a terminal's
    signals do not reach it; what it prints goes to core's log. Raises OSError."""
    return os.posix_spawn(
        executable,
        [executable.name],
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, 2, 1),
            (os.POSIX_SPAWN_DUP2, channel, CHANNEL_FD),
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
