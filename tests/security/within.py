"""Runs a command in the PID namespace of another process, as a child that gets our signals and ends with
us: `within PID COMMAND...`."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Final

PR_SET_PDEATHSIG: Final = 1
CLONE_NEWPID: Final = 0x2000_0000
CLONE_NEWNS: Final = 0x0002_0000  # for its /proc
PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main() -> None:
    """The process itself."""
    library = ctypes.CDLL(None, use_errno=True)
    where = Path.cwd()
    pidfd = os.pidfd_open(int(sys.argv[1]))
    if library.setns(pidfd, CLONE_NEWPID | CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "setns")
    os.chdir(where)
    child = os.fork()
    if child == 0:
        library.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.execv(sys.argv[2], sys.argv[2:])
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: os.kill(child, number))
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
