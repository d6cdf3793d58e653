"""The file descriptors that core holds for its clients, counted from the kernel's view."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Census:
    """Open fds by what they are: memory objects, process handles, SOCK_SEQPACKET sockets (engine
    channels and fd channels). Those of gRPC and the event loop are not counted."""

    memory: int = 0
    processes: int = 0
    channels: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.memory + self.processes + self.channels


def take_census() -> Census:
    """Look at every fd of this process."""
    memory = processes = channels = 0
    for entry in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):  # the listing's own fd is gone by now
            target = str(entry.readlink())
            memory += target.startswith("/memfd:")
            processes += "[pidfd]" in target or target.startswith("pidfd:")
            channels += target.startswith("socket:") and _is_channel(int(entry.name))
    return Census(memory, processes, channels)


def _is_channel(fd: int) -> bool:
    with socket.socket(fileno=os.dup(fd)) as duplicate:
        return duplicate.type == socket.SOCK_SEQPACKET
