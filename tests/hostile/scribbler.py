"""Threads that overwrite shared memory while an engine works on it: `native/scribbler.c`, by ctypes."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Final

from core_service.engine.native.build import FLAGS, INCLUDE, compiler
from dataspace.vcpu_page import Reason

SOURCE: Final = Path(__file__).parent / "native" / "scribbler.c"


@contextmanager
def compiled() -> Iterator[Path]:
    """The library, which any user may load, as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="vmsession-scribbler-") as directory:
        Path(directory).chmod(0o755)
        target = Path(directory) / "scribbler.so"
        includes = [f"-I{path}" for path in INCLUDE]
        command = [
            *compiler(),
            *FLAGS,
            "-shared",
            "-fPIC",
            *includes,
            str(SOURCE),
            "-o",
            str(target),
        ]
        subprocess.run(command, check=True)
        yield target


class Scribbler:
    """Owns a mapping of an fd, and the thread that writes there until `stop`; then `counts` tells what
    it did."""

    def __init__(self, library: ctypes.CDLL, fd: int, chance: Random, *, page: bool) -> None:
        self.counts: dict[str, int] = {}
        self._memory = mmap.mmap(fd, os.fstat(fd).st_size)
        self._stop = ctypes.c_uint32(0)
        self._seed = chance.getrandbits(63)
        work = self._page if page else self._guest_memory
        self._thread = threading.Thread(target=self._main, args=(library, work))
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and the mapping."""
        self._stop.value = 1
        self._thread.join()
        self._memory.close()

    def _main(self, library: ctypes.CDLL, work: Callable[[ctypes.CDLL, int], None]) -> None:
        everything = (ctypes.c_char * len(self._memory)).from_buffer(self._memory)
        work(library, ctypes.addressof(everything))
        del everything

    def _page(self, library: ctypes.CDLL, address: int) -> None:
        writes, runs = ctypes.c_uint64(0), ctypes.c_uint64(0)
        exits = (ctypes.c_uint64 * len(Reason))()
        library.scribble(
            ctypes.c_void_p(address),
            ctypes.c_uint64(self._seed),
            ctypes.byref(self._stop),
            ctypes.byref(writes),
            ctypes.byref(runs),
            exits,
        )
        self.counts = {"writes to pages": writes.value, "runs by page": runs.value}
        self.counts |= {f"exits seen: {reason.name}": exits[reason] for reason in Reason}

    def _guest_memory(self, library: ctypes.CDLL, address: int) -> None:
        writes = ctypes.c_uint64(0)
        library.scribble_memory(
            ctypes.c_void_p(address),
            ctypes.c_uint64(len(self._memory)),
            ctypes.c_uint64(self._seed),
            ctypes.byref(self._stop),
            ctypes.byref(writes),
        )
        self.counts = {"writes to guest memory": writes.value}
