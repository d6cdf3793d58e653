"""A core to attack."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.running_core import RunningCore


@pytest.fixture
def core() -> Iterator[RunningCore]:
    """A core that must stop in order, whatever was done to it."""
    running = RunningCore("--log-level", "warning")
    try:
        yield running
        running.stop()
    finally:
        running.close()
