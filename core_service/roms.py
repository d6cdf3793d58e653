"""ROM: copies of the files that policy lets clients have.

Policy is a list of directories: a client may have a copy of every regular file below one of its own
that core itself can read. The kernel resolves the rest of a path beneath the directory (openat2(2),
RESOLVE_BENEATH), so that neither `..` nor a symbolic link leads out of it, also while somebody renames
what is there.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from core_service.dataspaces import SIZE_LIMIT, Dataspace, memory_name
from core_service.refusal import Refusal, shortened
from dataspace.errors import InvalidDataspace
from dataspace.memory import Memory, open_regular, rom_length, rom_of
from dataspace.pages import round_up
from dataspace.view import View

if TYPE_CHECKING:
    from core_service.client import Client
    from core_service.dataspaces import Dataspaces
    from core_service.names import Names

COPIES_AT_ONCE: Final = 2
PATH_LIMIT: Final = 4095  # PATH_MAX without the NUL

_SYS_OPENAT2: Final = 437  # on every architecture since Linux 5.6
_RESOLVE_NO_MAGICLINKS: Final = 0x02  # linux/openat2.h
_RESOLVE_BENEATH: Final = 0x08
_OPEN_HOW: Final = struct.Struct("QQQ")  # flags, mode, resolve
_OUTSIDE: Final = {errno.EXDEV, errno.ELOOP}

_libc = ctypes.CDLL(None, use_errno=True)


class Roms:
    """Makes ROM dataspaces. Files are read in threads, one for a client, a few for all at once."""

    def __init__(self, dataspaces: Dataspaces, names: Names) -> None:
        self._dataspaces = dataspaces
        self._names = names
        self._copying = asyncio.Semaphore(COPIES_AT_ONCE)

    async def create(self, client: Client, path: str) -> Dataspace:
        """A copy of a file, charged like RAM. Raises Refusal DENIED, SHUTTING_DOWN, InvalidDataspace,
        OutOfRam, OutOfCaps, MemoryFailure."""
        async with client.copying, self._copying:
            client.must_live()  # it may have ended while this waited for its turn
            file = await asyncio.to_thread(_open, client.rom_paths, path)
            try:
                return await self._copy(client, file)
            finally:
                os.close(file)

    async def _copy(self, client: Client, file: int) -> Dataspace:
        length = rom_length(file, SIZE_LIMIT)
        with client.account.charged(ram=round_up(length), caps=1):
            name = self._names.new("dataspaces")
            memory: Memory = await asyncio.to_thread(rom_of, file, length, memory_name(name))
            made = Dataspace(name, "rom", View(memory), client.account, client)
            self._dataspaces.record(made)
        client.dataspaces[name] = made
        return made


def _open(directories: Sequence[Path], path: str) -> int:
    """The file, opened to be read; in a thread."""
    for directory in directories:
        parent = f"{directory}/".replace("//", "/")
        if path.startswith(parent) and len(os.fsencode(path)) <= PATH_LIMIT:
            location = _open_beneath(parent, path)
            try:
                return open_regular(location, shortened(path))
            finally:
                os.close(location)
    raise _denied(path, "not within a directory that policy names")


def _open_beneath(directory: str, path: str) -> int:
    """An O_PATH description of what `path` names, if that is within `directory`."""
    if "\0" in path:
        raise InvalidDataspace("path cannot be one", path=repr(shortened(path)))
    try:
        parent = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        try:
            return _openat2(parent, path.removeprefix(directory))
        finally:
            os.close(parent)
    except OSError as error:
        number = error.errno or 0
        if number in _OUTSIDE:
            raise _denied(path, "leads out of the directory that policy names") from error
        raise InvalidDataspace(
            "file cannot be opened", path=shortened(path), errno=number
        ) from error


def _openat2(parent: int, path: str) -> int:
    how = _OPEN_HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    name = os.fsencode(path) or b"."
    fd: int = _libc.syscall(_SYS_OPENAT2, parent, name, how, _OPEN_HOW.size)
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd


def _denied(path: str, why: str) -> Refusal:
    return Refusal("DENIED", f"{shortened(path)!r}: {why}", why=why)
