"""The VMM's mapping of one vCPU page, `proto/vcpu_page.h`."""

from __future__ import annotations

import mmap
import os

from dataspace._page import Waiter
from dataspace.vcpu_page import (
    ABI,
    ABI_AT,
    FPU_BYTES,
    FPU_CHARGED,
    FPU_VALID,
    MAGIC,
    MAGIC_AT,
    PAGE_BYTES,
    SIZE_AT,
    VMM_HALF,
    EngineHalf,
    VmmHalf,
)
from vmm_client.errors import BadFd, IncompatibleCore


class Page:
    """Both halves, the FPU areas, and the waiter. Owns the mapping until `release`."""

    def __init__(self, mapping: mmap.mmap) -> None:
        """Take over a mapping of PAGE_BYTES. Raises IncompatibleCore for another ABI."""
        view = memoryview(mapping)
        self.bytes = view
        self.engine = EngineHalf(view)
        self.vmm = VmmHalf(view, VMM_HALF)
        self.charged = EngineHalf(view, VMM_HALF)  # registers are read alike in both halves
        self.fpu_valid = view[FPU_VALID : FPU_VALID + FPU_BYTES].toreadonly()
        self.fpu_charged = view[FPU_CHARGED : FPU_CHARGED + FPU_BYTES]
        self.waiter = Waiter(mapping)
        try:
            self._check()
        except IncompatibleCore:
            self.release()
            raise

    @classmethod
    def from_fd(cls, fd: int, what: str) -> Page:
        """Map the page and close `fd`. Raises BadFd, IncompatibleCore, OSError (ENOMEM)."""
        try:
            length = os.fstat(fd).st_size
            if length < PAGE_BYTES:  # touching what lies beyond would be SIGBUS
                raise BadFd(what, f"it has {length} bytes instead of {PAGE_BYTES}")
            return cls(mmap.mmap(fd, PAGE_BYTES))
        finally:
            os.close(fd)

    def check(self) -> None:
        """Raises what ended the way to the engine; shared memory has no end of its own."""

    def release(self) -> None:
        """Let go of the mapping: it ends now, or when a thread that still waits on it returns."""
        self.engine.release()
        self.vmm.release()
        self.charged.release()
        for view in (self.fpu_valid, self.fpu_charged, self.bytes):
            view.release()
        self.waiter.release()

    def _check(self) -> None:
        words = self.engine.u32
        theirs = words[MAGIC_AT // 4], words[ABI_AT // 4], words[SIZE_AT // 4]
        ours = MAGIC, ABI, PAGE_BYTES
        if theirs != ours:
            raise IncompatibleCore("the vCPU page (magic, ABI, size)", theirs, ours)
