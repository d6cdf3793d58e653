"""What a host has of a core and of its clients' memory, by the kernel's word alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class Traces:
    """Of one core: its `fds` by what they are, empty where the kernel does not show them to this user;
    its own `threads`; its child processes; and the memory that any process this user may look into has
    open or mapped, as `pid: what`."""

    fds: dict[str, int]
    threads: int
    children: int
    memory: tuple[str, ...]


def look(pid: int, digits: str) -> Traces:
    """`digits` are those of core's name, with which all its names begin."""
    return Traces(_fds(pid), _threads(pid), _children(pid), tuple(holders_of_memory(digits)))


def holders_of_memory(digits: str) -> list[str]:
    """Who has memory of a core, also when core is gone."""
    return [
        f"{process.name}: {what}" for process in _processes() for what in _held(process, digits)
    ]


def shmem() -> int:
    """Bytes of shared memory on the whole host: also what no process has, such as fds in a socket's
    queue."""
    meminfo = dict(line.split(":") for line in (PROC / "meminfo").read_text().splitlines())
    return int(meminfo["Shmem"].removesuffix("kB")) * 1024


def _processes() -> Iterator[Path]:
    return (each for each in PROC.iterdir() if each.name.isdecimal())


def _held(process: Path, digits: str) -> Iterator[str]:
    names = tuple(f"/memfd:vmsession:{kind}/{digits}" for kind in ("dataspaces", "sessions"))
    with suppress(OSError):  # it ended, or is another user's
        for entry in (process / "fd").iterdir():
            with suppress(OSError):
                if (target := str(entry.readlink())).startswith(names):
                    yield f"fd {entry.name} {target}"
    with suppress(OSError):
        for line in (process / "maps").read_text().splitlines():
            mapped = line.split(maxsplit=5)[5:]
            if mapped and mapped[0].startswith(names):
                yield f"mapping {mapped[0]}"


def _fds(pid: int) -> dict[str, int]:
    kinds: Counter[str] = Counter()
    with suppress(PermissionError):
        for entry in (PROC / str(pid) / "fd").iterdir():
            with suppress(FileNotFoundError):
                kind, _, _ = str(entry.readlink()).partition(":[")
                kinds[kind] += 1
    return dict(kinds)


def _threads(pid: int) -> int:
    """Those that bear core's own name: gRPC's come and go with the load, under names of gRPC's."""
    names = [(task / "comm").read_text() for task in (PROC / str(pid) / "task").iterdir()]
    return names.count((PROC / str(pid) / "comm").read_text())


def _children(pid: int) -> int:
    return len((PROC / str(pid) / "task" / str(pid) / "children").read_text().split())
