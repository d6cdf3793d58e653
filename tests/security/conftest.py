"""The fixtures of the integration tests, and processes that do as they are told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.integration.conftest import core, stubs
from tests.integration.running_core import RunningCore
from tests.security.actor import Actor

__all__ = ["core", "stubs"]


@pytest.fixture(autouse=True)
def _as_two_users() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")


@pytest.fixture
def actor(core: RunningCore) -> Iterator[Callable[[int], Actor]]:
    """Starts a process of a user."""
    with ExitStack() as stack:
        yield lambda uid: stack.enter_context(Actor(core, uid))
