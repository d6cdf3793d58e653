"""What core and its engines need of the kernel, found out by asking it."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from vmm_client.doctor.check import Check
from vmm_client.doctor.processes import hierarchy

WHERE: Final = "kernel"
ACTIONS: Final = Path("/proc/sys/kernel/seccomp/actions_avail")
# The same on every architecture: include/uapi/asm-generic/unistd.h
LANDLOCK_CREATE_RULESET: Final = 444
FUTEX_WAITV: Final = 449
LANDLOCK_CREATE_RULESET_VERSION: Final = 1
SO_PEERPIDFD: Final = 77


def features() -> Iterator[Check]:
    """What there is, and what its lack costs."""
    release = platform.release()
    yield Check(
        WHERE,
        "futex_waitv",
        _call(FUTEX_WAITV) != -errno.ENOSYS,
        f"Linux {release}: 5.16 or later is needed",
    )
    abi = _call(LANDLOCK_CREATE_RULESET, 0, 0, LANDLOCK_CREATE_RULESET_VERSION)
    yield Check(
        WHERE,
        "Landlock",
        abi > 0,
        f"ABI {abi}" if abi > 0 else "engines are not kept from files: boot with lsm=landlock,...",
    )
    yield _seccomp()
    yield _memfd()
    yield _peer_pidfd()
    yield _cgroup()


def _seccomp() -> Check:
    try:
        actions = ACTIONS.read_text().split()
    except OSError:
        return Check(
            WHERE, "seccomp", False, "engines do not start: CONFIG_SECCOMP_FILTER is missing"
        )
    works = "kill_process" in actions
    return Check(WHERE, "seccomp", works, "" if works else f"no kill_process, only {actions}")


def _memfd() -> Check:
    try:
        os.close(os.memfd_create("vmsession-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    except OSError as error:
        return Check(WHERE, "memfd", False, f"no memory for guests: {error.strerror}")
    return Check(WHERE, "memfd", True)


def _peer_pidfd() -> Check:
    here, there = socket.socketpair()
    with here, there, suppress(OSError):
        os.close(int.from_bytes(here.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4), "little"))
        return Check(WHERE, "SO_PEERPIDFD", True)
    return Check(
        WHERE,
        "SO_PEERPIDFD",
        None,
        "not before Linux 6.5: core knows clients by pid and start time",
    )


def _cgroup() -> Check:
    where = hierarchy()
    if where is None:
        return Check(WHERE, "cgroup v2", None, "no limits for engines: mount it at /sys/fs/cgroup")
    controllers = (where / "cgroup.controllers").read_text().split()
    missing = [name for name in ("cpu", "cpuset", "memory", "pids") if name not in controllers]
    lack = f"; without {', '.join(missing)}: no such limits for engines" if missing else ""
    return Check(WHERE, "cgroup v2", None if missing else True, f"at {where}{lack}")


def _call(number: int, *arguments: int) -> int:
    """A system call's result, or the negative errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(number, *(ctypes.c_long(value) for value in arguments)))
    return -ctypes.get_errno() if result < 0 else result
