"""The shim that is preloaded into a core under test, and the words by which it is told what to do."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
from pathlib import Path

from core_service.engine.native.build import compiler
from tests.cgroup2 import inside
from tests.integration.running_core import ROOT, VMCORE, RunningCore

SOURCE = Path(__file__).parent / "shim.c"
FLAGS = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC")


class Deeds(ctypes.Structure):
    """`struct deeds` of shim.c."""

    _fields_ = (("limit", ctypes.c_uint32), ("count", ctypes.c_uint32))


class Control(ctypes.Structure):
    """`struct control` of shim.c."""

    _fields_ = (
        ("core", Deeds),
        ("log", Deeds),
        ("engine", Deeds),
        ("client", Deeds),
        ("wall_ns", ctypes.c_int64),
        ("counting", ctypes.c_uint32),
    )


def build(directory: Path) -> Path:
    """Compile it."""
    target = directory / "shim.so"
    subprocess.run([*compiler(), *FLAGS, str(SOURCE), "-o", str(target), "-ldl"], check=True)
    return target


class Shim:
    """Owns the control words, which a core and its engines share with the test."""

    def __init__(self, library: Path, directory: Path) -> None:
        self._library = library
        self._path = directory / "control"
        self._path.write_bytes(bytes(mmap.PAGESIZE))
        with self._path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self._words = Control.from_buffer(self._memory)

    def core(self, *options: str, cgroup: Path | None = None) -> RunningCore:
        """A core that heeds this, in a cgroup; the caller closes it."""
        command = ("env", *self._environment(), VMCORE)
        return RunningCore(*options, command=inside(cgroup, *command) if cgroup else command)

    def client(self, *command: object) -> subprocess.Popen[str]:
        """A client that heeds this, with its input and its output; the caller ends it."""
        heeding = ("env", *self._environment(), "VMSESSION_FAULTS_CLIENT=1", *map(str, command))
        return subprocess.Popen(
            heeding, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _environment(self) -> tuple[str, str]:
        return f"LD_PRELOAD={self._library}", f"VMSESSION_FAULTS={self._path}"

    def arm(self, role: str, deed: int) -> None:
        """From now on count the deeds of `core`'s event loop, of the writer of its `log`, of any
        `engine` or of a `client`, and kill whoever is about to do the one of this number; 0 kills
        nobody."""
        deeds = getattr(self._words, role)
        deeds.count, deeds.limit = 0, deed
        self._words.counting = 1

    def disarm(self, role: str) -> int:
        """Count no more; how many deeds there were."""
        self._words.counting = 0
        return int(getattr(self._words, role).count)

    def set_clock(self, seconds_ahead: float) -> None:
        """What core takes for the time of day."""
        self._words.wall_ns = int(seconds_ahead * 1e9)
