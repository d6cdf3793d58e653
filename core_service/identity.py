"""Who is at the other end of a UNIX socket."""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SO_PEERPIDFD: Final = 77  # Linux 6.5, include/uapi/asm-generic/socket.h


@dataclass(frozen=True, slots=True)
class Identity:
    """A process as the kernel names it at connect: `pid` is 0 in another PID namespace, `started` its
    start time in clock ticks since boot, 0 where it cannot be read."""

    uid: int
    gid: int
    pid: int
    started: int


def peer_identity(connection: socket.socket) -> Identity:
    """The process that connected (SO_PEERCRED, unix(7))."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", raw)
    return Identity(uid=uid, gid=gid, pid=pid, started=start_time(pid))


def peer_pidfd(connection: socket.socket, pid: int) -> int | None:
    """A pidfd of the process that connected, owned by the caller; None where there is none to be had.

    Raises ProcessLookupError if the process is gone already.
    """
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, struct.calcsize("i"))
        return int(struct.unpack("i", raw)[0])
    except OSError as error:
        if error.errno in {errno.ESRCH, errno.EINVAL}:  # reaped: its pid may be another's by now
            raise ProcessLookupError(error.errno, error.strerror) from error
    if pid == 0:
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except OSError:
        return None


def start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat (proc(5)); the name before it may hold spaces and parentheses."""
    with suppress(OSError, ValueError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        return int(stat[stat.rindex(b")") + 2 :].split()[19])
    return 0
