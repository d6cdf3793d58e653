"""The VMM's side of a vCPU page in C, called from Python: see native/page_vmm.c."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dataspace.vcpu_page import PAGE_BYTES
from tests.benchmarks.helper import compile_helper
from vmm_client import Vcpu

SPIN_NS: Final = 50_000  # what dataspace._page spins at most


class CVmm:
    """Serves a stopped vCPU, which Python served before and may serve again after."""

    def __init__(self, library: ctypes.CDLL, page: int) -> None:
        """`page` is the address of a mapping that outlives every call."""
        self._page = page
        self._serve = library.page_serve
        self._serve.argtypes = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32
        self._serve.restype = ctypes.c_uint64
        self._serve_words = library.page_serve_words
        self._serve_words.argtypes = ctypes.c_void_p, ctypes.c_uint32
        self._serve_words.restype = ctypes.c_uint64

    def serve(self, count: int, spin_ns: int = SPIN_NS) -> float:
        """Serve `count` port I/O exits: nanoseconds an exit."""
        return self._checked(self._serve(self._page, count, spin_ns)) / count

    def serve_words(self, count: int) -> float:
        """The same with the counters alone, against an engine's side that does the same."""
        return self._checked(self._serve_words(self._page, count)) / count

    @staticmethod
    def _checked(nanoseconds: int) -> int:
        if not nanoseconds:
            raise AssertionError("an exit was no port I/O, or did not come")
        return nanoseconds


def load_c_vmm(directory: Path) -> ctypes.CDLL:
    """Compile and load it. Raises BuildError, CalledProcessError, OSError."""
    return ctypes.CDLL(str(compile_helper("page_vmm.c", directory, "-shared", "-fPIC")))


@contextmanager
def c_vmm(library: ctypes.CDLL, vcpu: Vcpu) -> Iterator[CVmm]:
    """While in here the page is not released."""
    page = (ctypes.c_char * PAGE_BYTES).from_buffer(vcpu.stopped_page().bytes)
    try:
        yield CVmm(library, ctypes.addressof(page))
    finally:
        del page
