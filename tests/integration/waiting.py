"""Waiting for what happens in another process."""

from __future__ import annotations

import select
import time
from collections.abc import Callable


def eventually(
    condition: Callable[[], bool],
    describe: Callable[[], str] = lambda: "",
    limit: float = 10.0,
) -> None:
    """Ask until it holds, at most `limit` seconds."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"not within {limit} s: {describe()}"
        select.select([], [], [], 0.01)
