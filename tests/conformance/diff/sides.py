"""Two engines in lockstep, and sides that differ on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conformance.diff.campaign import MEMORY
from tests.conftest import expected
from vmm_client import Connection
from vmm_client.diff import Guest, Lockstep, Side
from vmm_client.diff.stop import Registers


@contextmanager
def lockstep(
    client: Connection, first: str, second: str, kind: type[Side] = Side
) -> Iterator[Lockstep]:
    """Of two engines; the second side is of this kind. Skips where one of them does not run."""
    missing = {first, second} - set(expected())
    if missing:
        pytest.skip(f"engine {', '.join(missing)} does not run here")
    with Side(client, first, MEMORY) as one, kind(client, second, MEMORY) as other:
        yield Lockstep(one, other)


class OtherRegister(Side):
    """Enters with another RBP."""

    def enter(self, guest: Guest, reset: Registers, seed: int) -> None:
        super().enter(guest, reset, seed)
        self.charge({"rbp": 0x1234})


class OtherMemory(Side):
    """Has another byte in its memory."""

    AT = 0x1F000

    def enter(self, guest: Guest, reset: Registers, seed: int) -> None:
        super().enter(guest, reset, seed)
        self.memory.write(self.AT, b"\x5a")


class OtherAnswers(Side):
    """Has other devices."""

    def enter(self, guest: Guest, reset: Registers, seed: int) -> None:
        super().enter(guest, reset, seed + 1)
