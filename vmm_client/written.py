"""What the VMM wrote into guest memory, for engines that keep decoded code.

Each vCPU reads the log at its own pace: it keeps the position up to which its engine knows. The
log is bounded: a vCPU that is further behind than a reply has room for says "everything".
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from itertools import islice

from dataspace.vcpu_page import WRITTEN_RANGES

Range = tuple[int, int]  # first guest-physical address, bytes


class WrittenLog:
    """The last ranges written. Any thread may note, any may read."""

    def __init__(self) -> None:
        self.position = 0
        self._lock = threading.Lock()
        # One more than a reply can carry: `VmmHalf.written` then says "everything".
        self._ranges: deque[Range] = deque(maxlen=WRITTEN_RANGES + 1)

    def note(self, gpa: int, size: int) -> None:
        """`size` bytes at `gpa` were written; call it after the last byte stands there."""
        if not size:
            return
        with self._lock:
            self._ranges.append((gpa, size))
            self.position += 1

    def since(self, position: int) -> tuple[Sequence[Range], int]:
        """The ranges noted since `position`, and the position to ask from next time."""
        with self._lock:
            count = min(self.position - position, len(self._ranges))
            return tuple(islice(self._ranges, len(self._ranges) - count, None)), self.position
