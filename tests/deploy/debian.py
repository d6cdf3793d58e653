"""A Debian of one's own: bootstrapped into a directory, booted in namespaces. Needs root, mmdebstrap, a
package mirror and a cgroup v2 hierarchy; takes a minute."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.cgroup2 import hierarchy
from tests.deploy.staging import ROOT
from tests.integration.waiting import eventually

SUITE: Final = "bookworm"
SOURCES: Final = Path("/etc/apt/sources.list.d/debian.sources")
# How this host reaches package registries: a test's root reaches them likewise.
BORROWED: Final = ("/etc/pip.conf", "/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt")
VARIABLES: Final = ("PIP_", "SSL_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOT_COPIED: Final = (
    ".git",
    ".venv",
    "build",
    "*.egg-info",
    "__pycache__",
    ".*_cache",
    "bin",
    "*.so",
)

# Everything that systemd changes is its own: mounts, processes, /dev, cgroups below one.
ENTER: Final = """
set -e
echo $$ >"$1/cgroup.procs"
shift
exec unshare --pid --fork --kill-child --mount --uts --ipc --cgroup "$@"
"""
BOOT: Final = """
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty kvm; do
    if [ -e /dev/$node ]; then cp -a /dev/$node dev/$node; fi
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
hostname vmsession-test
pivot_root . mnt
umount -l /mnt
exec env -i container=test PATH=/usr/sbin:/usr/bin /lib/systemd/systemd
"""


def why_not() -> str:
    """What this machine lacks for it; empty if nothing."""
    if os.geteuid() != 0:
        return "only root can make a Debian of his own"
    for tool in ("mmdebstrap", "unshare", "nsenter", "chroot"):
        if shutil.which(tool) is None:
            return f"no {tool} here"
    return "" if hierarchy() else "no cgroup v2 here"


def bootstrap(root: Path, variant: str, *packages: str) -> None:
    """Make a Debian in a directory that is not there yet."""
    sources = [SOURCES] if SOURCES.exists() else []
    include = f"--include={','.join(packages)}"
    subprocess.run(
        ["mmdebstrap", "--quiet", f"--variant={variant}", include, SUITE, str(root), *sources],
        timeout=900,
        check=True,
    )
    for path in map(Path, BORROWED):
        if path.exists():
            (root / path.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path.resolve(), root / path.relative_to("/"))


def copy_source(directory: Path) -> None:
    """This tree, as a clone has it."""
    shutil.copytree(ROOT, directory, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))


def environment() -> dict[str, str]:
    """For commands in a root."""
    own = {name: value for name, value in os.environ.items() if name.upper().startswith(VARIABLES)}
    return own | {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8"}


class Booted:
    """Owns a systemd that runs as process 1 of its own, and the cgroup that it is in."""

    def __init__(self, root: Path, log: Path) -> None:
        base = hierarchy()
        assert base
        self._cgroup = base / f"vmsession-test-{os.getpid()}"
        self._cgroup.mkdir()
        with log.open("w") as output:
            self._outer = subprocess.Popen(
                ["sh", "-c", ENTER, "sh", self._cgroup, "sh", "-c", BOOT, "sh", root],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            eventually(self._is_up, log.read_text, limit=60)
            # Only now: a cgroup with a process in it cannot limit those below.
            (base / "cgroup.procs").write_text(str(self._outer.pid))
        except BaseException:
            self.close()
            raise

    def _first(self) -> str:
        """The process that is number 1 in there."""
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        return children.read_text().strip()

    def _is_up(self) -> bool:
        assert self._outer.poll() is None, "systemd ended"
        return bool(self._first()) and self.run("systemctl is-active multi-user.target")[0] == 0

    def run(self, command: str, user: str = "root", seconds: float = 300) -> tuple[int, str]:
        """Run a shell's command as a user who logged in; its exit status and output."""
        words = ["bash", "-c", command]
        if user != "root":
            words = ["runuser", "--login", user, "--command", command]
        ran = subprocess.run(
            ["nsenter", f"--target={self._first()}", "-m", "-p", "-u", "-i", "-C", *words],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        return ran.returncode, ran.stdout

    def start(self, command: str, user: str) -> subprocess.Popen[bytes]:
        """Start a user's command; the caller ends it."""
        return subprocess.Popen(
            [
                *("nsenter", f"--target={self._first()}", "-m", "-p", "-u", "-i", "-C"),
                *("runuser", "--login", user, "--command", f"exec {command}"),
            ],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def close(self) -> None:
        """End it with all its processes, and remove its cgroups."""
        first = self._first() if self._outer.poll() is None else ""
        if first:
            os.kill(int(first), signal.SIGKILL)
        self._outer.kill()
        self._outer.wait(60)
        eventually(lambda: not self._populated(), limit=30)
        for cgroup in sorted(self._cgroup.rglob("*/"), key=lambda path: -len(path.parts)):
            with suppress(OSError):
                cgroup.rmdir()
        self._cgroup.rmdir()

    def _populated(self) -> bool:
        return "populated 1" in (self._cgroup / "cgroup.events").read_text()


def chroot(root: Path, command: str, user: str = "0:0") -> subprocess.CompletedProcess[str]:
    """Run a shell's command in a root that is not booted."""
    return subprocess.run(
        ["chroot", f"--userspec={user}", root, "/bin/sh", "-ec", command],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
