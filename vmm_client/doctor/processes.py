"""Core's processes as anybody may see them in /proc (proc(5)): core, its keeper, its engines."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
MOUNTS: Final = Path("/proc/self/mounts")
LOCK: Final = "core.lock"
ENGINE: Final = "vmsession-"
KEEPER: Final = "core_service.keeper"
FILTERED: Final = 2  # SECCOMP_MODE_FILTER


@dataclass(frozen=True, slots=True)
class Process:
    """A process, as it was when looked at. `descriptors` is the most that it may have, `cgroup` its
    cgroup v2: None where they cannot be seen."""

    pid: int
    command: tuple[str, ...]
    status: dict[str, str]
    descriptors: int | None
    cgroup: Path | None

    @property
    def name(self) -> str:
        return self.status.get("Name", "")

    @property
    def uid(self) -> int:
        return int(self.status["Uid"].split()[1])

    @property
    def groups(self) -> set[int]:
        """Its own and its supplementary groups."""
        return {int(gid) for gid in (self.status["Gid"] + " " + self.status["Groups"]).split()}

    @property
    def gains_nothing(self) -> bool:
        """Whether it has no_new_privs."""
        return self.status.get("NoNewPrivs") == "1"

    @property
    def filtered(self) -> bool:
        """Whether a seccomp filter says which system calls it may make."""
        return self.status.get("Seccomp") == str(FILTERED)

    def option(self, name: str) -> str:
        """The value of an option of its command line; empty where it is not given."""
        for at, word in enumerate(self.command):
            if word == name:
                return self.command[at + 1] if at + 1 < len(self.command) else ""
            if word.startswith(f"{name}="):
                return word.removeprefix(f"{name}=")
        return ""


def process(pid: int, proc: Path = PROC) -> Process | None:
    """A process, None if there is no such one to be seen."""
    own = proc / str(pid)
    try:
        status = (own / "status").read_text(errors="replace")
        words = (own / "cmdline").read_bytes().decode(errors="replace").split("\0")
        limits = (own / "limits").read_text()
        cgroups = (own / "cgroup").read_text()
    except OSError:
        return None
    pairs = (line.partition(":") for line in status.splitlines())
    return Process(
        pid,
        tuple(words[:-1]),
        {name: value.strip() for name, _, value in pairs},
        _descriptors(limits),
        _cgroup(cgroups),
    )


def hierarchy() -> Path | None:
    """Where cgroup v2 is mounted (cgroups(7)), None if it is not."""
    for line in MOUNTS.read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    return None


def _descriptors(limits: str) -> int | None:
    for line in limits.splitlines():
        if line.startswith("Max open files"):
            most = line.split()[3]
            return sys.maxsize if most == "unlimited" else int(most)
    return None


def _cgroup(cgroups: str) -> Path | None:
    root = hierarchy()
    for line in cgroups.splitlines():
        if root and line.startswith("0::/"):
            return root / line.removeprefix("0::/")
    return None


def core_of(directory: Path, proc: Path = PROC) -> Process | None:
    """Who serves in a directory: it has locked `core.lock` there."""
    try:
        lock = (directory / LOCK).stat()
    except OSError:
        return None
    device = f"{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}:{lock.st_ino}"
    for line in (proc / "locks").read_text().splitlines():
        _, kind, _, _, pid, where, *_ = line.replace("-> ", "").split()
        if kind == "FLOCK" and where == device:
            return process(int(pid), proc)
    return None


def keepers(uid: int, proc: Path = PROC) -> list[Process]:
    """The keepers of core's user."""
    return [each for each in _of(uid, proc) if KEEPER in each.command]


def engines(uid: int, proc: Path = PROC) -> list[Process]:
    """The engines of core's user."""
    return [each for each in _of(uid, proc) if each.name.startswith(ENGINE)]


def _of(uid: int, proc: Path) -> Iterator[Process]:
    for entry in proc.iterdir():
        if (
            entry.name.isdecimal()
            and (found := process(int(entry.name), proc))
            and found.uid == uid
        ):
            yield found
