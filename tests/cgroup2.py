"""The cgroup v2 hierarchy of this machine, and cgroups that a test may do with as it likes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.deploy.staging import DEPLOY

PF_KTHREAD = 0x00200000
SCRIPT = DEPLOY / "libexec/release-cgroups"
# As on a system whose only hierarchy is the second: in a mount namespace of its own.
RELEASE = """
[ -e /sys/fs/cgroup/cgroup.procs ] || mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit 1
echo $$ >/sys/fs/cgroup/$1/.control/cgroup.procs && exec "$2"
"""


def hierarchy() -> Path | None:
    """Where it can be written."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(where)
    return None


@contextmanager
def own_cgroup(name: str, *, given: bool) -> Iterator[Path]:
    """A cgroup of the test's own, marked as systemd marks those of Delegate= if it is `given`. In the
    end nothing may be in it, nor below it."""
    root = hierarchy()
    if root is None:
        pytest.skip("no cgroup v2 here")
    path = root / f"vmsession-test-{os.getpid()}-{name}"
    try:
        path.mkdir()
        if given:
            os.setxattr(path, "user.delegate", b"1")
    except OSError as error:
        with suppress(OSError):
            path.rmdir()
        pytest.skip(f"no cgroups to be made here: {error}")
    try:
        yield path
    finally:
        below = sorted(path.rglob("*/"), key=lambda each: -len(each.parts))
        for each in (*below, path):
            each.rmdir()


def inside(cgroup: Path, *command: str) -> tuple[str, ...]:
    """A command that runs there."""
    return ("sh", "-c", f'echo $$ >{cgroup}/cgroup.procs && exec "$@"', "sh", *command)


def release(cgroup: Path) -> None:
    """Have no limit hold below it, as systemd does after core ended: the next one starts in it."""
    (cgroup / ".control").mkdir(exist_ok=True)
    released = subprocess.run(
        ["unshare", "--mount", "sh", "-c", RELEASE, "sh", cgroup.name, SCRIPT],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (released.returncode, released.stderr) == (0, "")


def pids(cgroup: Path) -> set[int]:
    """The processes that are in it, and in none below. KVM puts a thread of the kernel's beside each VM,
    which does not count."""
    found: set[int] = set()
    with suppress(OSError):  # it is being removed
        found = set(map(int, (cgroup / "cgroup.procs").read_text().split()))
    return {pid for pid in found if not _of_the_kernel(pid)}


def _of_the_kernel(pid: int) -> bool:
    """By the flags of proc_pid_stat(5)."""
    with suppress(OSError):  # it ended
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return bool(int(fields[6]) & PF_KTHREAD)
    return False
