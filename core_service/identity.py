"""Who is at the other end of a UNIX socket.

A process id alone is nobody: it is another process's once its owner was reaped, and 0 for whoever is in
another PID namespace. So a process is known by what the kernel never gives again: its number in pidfs
(Linux 6.9), before that its start time.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What the host has no more of."""
SO_PEERPIDFD: Final = 77  # Linux 6.5, include/uapi/asm-generic/socket.h
NOBODY: Final = -1  # what no process is known by


@dataclass(frozen=True, slots=True)
class Identity:
    """A process as the kernel names it at connect: `pid` is 0 in another PID namespace, `started` tells
    it from every other process that ever has this pid; 0 where the kernel tells nothing."""

    uid: int
    gid: int
    pid: int
    started: int

    @property
    def known(self) -> bool:
        """Whether a second connection can be told to be the same process's."""
        return bool(self.pid or self.started)


def peer(connection: socket.socket) -> tuple[Identity, int | None]:
    """The process that connected (SO_PEERCRED, unix(7)), and a pidfd of it, owned by the caller; None
    where there is none to be had.

    Raises ProcessLookupError if it ended already: its pid may be another's by now. Raises OSError where
    core lacks an fd to look: half an identity would be another's.
    """
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", raw)
    pidfd = _peer_pidfd(connection, pid)
    try:
        identity = Identity(uid, gid, pid, _distinction(pid, pidfd))
        if pidfd is not None:
            _must_live(pidfd)
    except BaseException:
        if pidfd is not None:
            os.close(pidfd)
        raise
    return identity, pidfd


def peer_identity(connection: socket.socket) -> Identity:
    """As `peer`, without the pidfd. Raises ProcessLookupError, OSError."""
    identity, pidfd = peer(connection)
    if pidfd is not None:
        os.close(pidfd)
    return identity


def distinction(pid: int) -> int:
    """What tells the process that has this pid now from later ones; NOBODY if there is none. Raises
    OSError where core lacks an fd to look."""
    try:
        pidfd = os.pidfd_open(pid)
    except (ProcessLookupError, OverflowError):  # of 32 bits, where the kernel's have 31
        return NOBODY
    except OSError as error:
        _must_not_be_exhausted(error)
        return _start_time(pid)
    try:
        return _distinction(pid, pidfd)
    finally:
        os.close(pidfd)


def _peer_pidfd(connection: socket.socket, pid: int) -> int | None:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, struct.calcsize("i"))
        return int(struct.unpack("i", raw)[0])
    except OSError as error:
        if error.errno in {errno.ESRCH, errno.EINVAL}:  # reaped: its pid may be another's by now
            raise ProcessLookupError(error.errno, error.strerror) from error
        _must_not_be_exhausted(error)
    if pid == 0:
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except OSError as error:
        _must_not_be_exhausted(error)
        return None


def _must_not_be_exhausted(error: OSError) -> None:
    """What cannot be told is one thing, what could be told by who had an fd another."""
    if error.errno in EXHAUSTED:
        raise error


def _must_live(pidfd: int) -> None:
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    if waiting.poll(0):
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))


def _distinction(pid: int, pidfd: int | None) -> int:
    return _pidfs_number(pidfd) or _start_time(pid)


def _pidfs_number(pidfd: int | None) -> int:
    """0 without pidfs: then a pidfd is an anonymous inode, which all of them share."""
    if pidfd is None:
        return 0
    found = os.fstat(pidfd)
    return 0 if found.st_dev == _ANONYMOUS else found.st_ino


def _anonymous_device() -> int:
    with select.epoll() as anonymous:
        return os.fstat(anonymous.fileno()).st_dev


_ANONYMOUS: Final = _anonymous_device()


def _start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat (proc(5)); the name before it may hold spaces and parentheses."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError as error:
        _must_not_be_exhausted(error)
        return 0
    with suppress(ValueError, IndexError):
        return int(stat[stat.rindex(b")") + 2 :].split()[19])
    return 0
