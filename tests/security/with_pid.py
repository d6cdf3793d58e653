"""Runs a command as a child that has a chosen process id, and waits for its end:
`with_pid PID COMMAND...`. Only root may choose (clone3(2), set_tid)."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
import time
from typing import Final

CLONE3: Final = 435  # on every architecture
FREE_WITHIN: Final = 10.0


class CloneArguments(ctypes.Structure):
    """struct clone_args (linux/sched.h)."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack"),
            *("stack_size", "tls", "set_tid", "set_tid_size", "cgroup"),
        )
    )


def fork_as(pid: int) -> int:
    """As fork(2); once the id is free. Raises OSError."""
    ids = (ctypes.c_int32 * 1)(pid)
    asked = CloneArguments(
        exit_signal=signal.SIGCHLD, set_tid=ctypes.addressof(ids), set_tid_size=1
    )
    library = ctypes.CDLL(None, use_errno=True)
    end = time.monotonic() + FREE_WITHIN
    while True:
        child = int(library.syscall(CLONE3, ctypes.byref(asked), ctypes.sizeof(asked)))
        if child >= 0:
            return child
        number = ctypes.get_errno()
        if number != errno.EEXIST or time.monotonic() > end:
            raise OSError(number, os.strerror(number))


def main() -> None:
    """The process itself."""
    child = fork_as(int(sys.argv[1]))
    if child == 0:
        os.execvp(sys.argv[2], sys.argv[2:])
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
