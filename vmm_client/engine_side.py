"""The engine's side of a vCPU page, for engines that are reached by other ways: `vmm_client.relay`.

It is what `proto/vcpu_page.h` says of a side that cannot fence.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Final

from dataspace import futex
from dataspace.vcpu_page import (
    ABI,
    ABI_AT,
    ENGINE_WAITING_AT,
    EXIT_SEQ_AT,
    INDEX_AT,
    KICK_SEQ_AT,
    MAGIC,
    MAGIC_AT,
    PAGE_BYTES,
    PAUSE_SEQ_AT,
    RUN_SEQ_AT,
    SIZE_AT,
    TSC_KHZ_AT,
    VMM_HALF,
    WINDOW_SEQ_AT,
)

WRAP: Final = 1 << 32
SLEEP_SECONDS: Final = 0.1


class EngineSide:
    """A page as an engine introduces it, and the words by which both sides run and stop."""

    def __init__(self, index: int, tsc_khz: int) -> None:
        self.mapping = mmap.mmap(-1, PAGE_BYTES)
        words = memoryview(self.mapping).cast("I")
        words[MAGIC_AT // 4] = MAGIC
        words[ABI_AT // 4] = ABI
        words[SIZE_AT // 4] = PAGE_BYTES
        words[INDEX_AT // 4] = index
        words[TSC_KHZ_AT // 4] = tsc_khz
        words[ENGINE_WAITING_AT // 4] = 1
        self._words = words
        self._run = self._word(VMM_HALF + RUN_SEQ_AT)
        self._kick = self._word(VMM_HALF + KICK_SEQ_AT)
        self._exit = self._word(EXIT_SEQ_AT)
        self._taken = 0  # the run whose reply was taken last
        self._seen: Sequence[tuple[futex.Word, int]] = ()

    def _word(self, at: int) -> futex.Word:
        return futex.Word.from_buffer(self.mapping, at)

    @property
    def exit_seq(self) -> int:
        """The number of the last exit published."""
        return self._exit.value

    @property
    def pause_seq(self) -> int:
        """How often the VMM asked for PAUSED."""
        return self._words[(VMM_HALF + PAUSE_SEQ_AT) // 4]

    @property
    def window_seq(self) -> int:
        """How often the VMM asked for WINDOW."""
        return self._words[(VMM_HALF + WINDOW_SEQ_AT) // 4]

    def runs(self) -> bool:
        """Whether the VMM ran the vCPU; true once for each run. What it asked for before the run can be
        seen after this."""
        self._seen = (self._run, self._run.value), (self._kick, self._kick.value)
        run = self._seen[0][1]
        if run != (self.exit_seq + 1) % WRAP or run == self._taken:
            return False
        self._taken = run
        return True

    def sleep(self) -> None:
        """Until the VMM runs the vCPU or asks for something, or another thread wakes, or a tenth of a
        second is over. What came since the last `runs` ends it at once."""
        futex.sleep(self._seen, SLEEP_SECONDS)

    def wake(self) -> None:
        """End the sleep of another thread."""
        futex.wake(self._run)

    def publish(self) -> None:
        """The next exit stands in the engine's half: the vCPU is stopped."""
        self._exit.value = (self.exit_seq + 1) % WRAP
        futex.wake(self._exit)
