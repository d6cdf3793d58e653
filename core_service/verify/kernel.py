"""Core's objects against the kernel's view of core: file descriptors of memory, engine processes."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from core_service.engine.protocol import MEMORY_NAME
from core_service.verify.look import AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from core_service.core import Core
    from core_service.dataspaces import Dataspace
    from core_service.verify.look import Look

MEMFD: Final = f"/memfd:{MEMORY_NAME}"
CHILDREN: Final = Path("/proc/thread-self/children")
ENGINE: Final = "vmsession-"  # how the names of engine processes begin


class File(NamedTuple):
    """A memory object that core has open: the dataspace that its name tells, its bytes, those of them
    that are backed, and how many file descriptors there are."""

    name: str
    size: int
    committed: int
    descriptors: int


async def check_kernel(core: Core, look: Look) -> None:
    """Each memory must be open in core once, and nothing else; none be mapped in it; each engine process
    be a session's."""
    for name, size in (await asyncio.to_thread(mapped_memory)).items():
        look.wrong(
            "kernel", name, f"{size} bytes of its memory are mapped in core, which maps none"
        )
    files = await asyncio.to_thread(open_files)
    look.descriptors += sum(file.descriptors for file in files.values())
    memories: dict[int, list[Dataspace]] = {}
    for dataspace in core.dataspaces.all.values():
        memories.setdefault(dataspace.memory.memory.inode, []).append(dataspace)
    for inode in files.keys() - memories.keys():
        _belongs_to_nobody(files[inode], look)
    for number, (inode, views) in enumerate(memories.items(), 1):
        _check_memory(core, files.get(inode), views, look)
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)
    if CHILDREN.exists():  # a kernel with CONFIG_PROC_CHILDREN
        _check_processes(core, await asyncio.to_thread(engine_children), look)


def _belongs_to_nobody(file: File, look: Look) -> None:
    told = f"{file.descriptors} file descriptors in core of {file.size} bytes of memory"
    look.wrong("kernel", file.name, f"{told}, which no dataspace has")


def _check_memory(core: Core, file: File | None, views: list[Dataspace], look: Look) -> None:
    name, memory = views[0].name, views[0].memory.memory
    if file is None:
        look.wrong("kernel", name, "its memory has no file descriptor in core")
        return
    if file.descriptors != 1:
        look.wrong(
            "kernel", name, f"its memory has {file.descriptors} file descriptors in core, not 1"
        )
    if file.size != memory.size or file.committed > file.size:
        told = f"{file.size} bytes, {file.committed} of them backed"
        look.wrong("kernel", name, f"its memory has {told}, and it should have {memory.size}")
    if file.descriptors == 1 and _reachable_by_nobody(core, views) and memory.held():
        look.wrong(
            "kernel", name, "somebody holds its memory, of which no file descriptor left core"
        )


def _reachable_by_nobody(core: Core, views: list[Dataspace]) -> bool:
    """Whether neither an engine nor a client was given it, by all that core knows."""
    return all(
        view.kind != "vcpu_page"
        and view.name in core.dataspaces.all
        and not view.sessions
        and not core.ledger.record(view.name).hand_outs
        for view in views
    )


def _check_processes(core: Core, children: dict[int, str], look: Look) -> None:
    known = core.engines.pids
    used = {session.engine.pid: session.name for session in core.sessions.values()}
    for pid in children.keys() - known:
        look.wrong(
            "kernel", f"process {pid}", f"{children[pid]}, a child of core, is nobody's engine"
        )
    for pid in known - used.keys():
        look.wrong("kernel", f"process {pid}", "is an engine of core's, and of no session")
    for pid in used.keys() - children.keys() - core.engines.adopted_pids:
        look.wrong("kernel", used[pid], f"its engine, process {pid}, is gone")


def open_files() -> dict[int, File]:
    """The memory objects open in this process, by inode."""
    files: dict[int, File] = {}
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208 - many: no Path for each
        with suppress(OSError):  # closed meanwhile
            fd = int(entry)
            target = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
            if not target.startswith(MEMFD):
                continue
            status = os.fstat(fd)
            seen = files.get(status.st_ino)
            name = target.removeprefix(MEMFD).removesuffix(" (deleted)")
            count = seen.descriptors + 1 if seen else 1
            files[status.st_ino] = File(name, status.st_size, status.st_blocks * 512, count)
    return files


def mapped_memory() -> dict[str, int]:
    """Bytes of the memory objects that are mapped in this process, by the name of the dataspace."""
    mapped: dict[str, int] = {}
    with Path("/proc/self/maps").open() as maps:
        for line in maps:
            addresses, *_, path = line.rstrip("\n").split(maxsplit=5)
            if path.startswith(MEMFD):
                first, end = (int(address, 16) for address in addresses.split("-"))
                name = path.removeprefix(MEMFD).removesuffix(" (deleted)")
                mapped[name] = mapped.get(name, 0) + end - first
    return mapped


def engine_children() -> dict[int, str]:
    """The engine processes among the children of this one, also those that ended, with their names."""
    found = {}
    for pid in _children():
        with suppress(OSError):  # reaped meanwhile
            name = Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
            if name.startswith(ENGINE):
                found[pid] = name
    return found


def _children() -> Iterator[int]:
    """Of all threads: a child belongs to the one that started it (proc(5), task/TID/children)."""
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # the thread ended
            yield from map(int, (task / "children").read_text().split())
