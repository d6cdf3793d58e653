"""The threads for what would block the event loop: disks, hashes, the kernel's listings."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

WORKERS: Final = 6


def workers(name: str = "worker", count: int = WORKERS) -> ThreadPoolExecutor:
    """All of them started: threads that came with the load would look like a leak to whoever counts."""
    pool = ThreadPoolExecutor(count, name)
    all_there = threading.Barrier(count + 1)
    for _ in range(count):
        pool.submit(all_there.wait)
    all_there.wait()
    return pool
