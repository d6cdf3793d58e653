"""A client that is killed while it asks for something.

    python -m tests.faults.client SOCKET OPERATION ROM

prepares, says so, waits for a line of its input, asks, says so, and ends with its input.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.faults.operations import OPERATIONS, Actor
from vmm_client import Connection, Ram, connect


class Alone:
    """A client's other self: shares go from it to it."""

    def __init__(self, core: Connection) -> None:
        self.uid = os.geteuid()
        self._core = core
        self._made: list[Ram] = []

    def offers(self, uid: int) -> str:
        self._made.append(self._core.create_ram(4096))
        return self._made[-1].share(uid).name

    def accepts(self, share: str) -> None:
        self._made.append(self._core.accept(share))

    def forgets(self) -> None:
        """All ends with the client."""


def main() -> None:
    """The process itself."""
    socket, name, rom = sys.argv[1:]
    operation = next(each for each in OPERATIONS if each.name == name)
    with connect(socket) as core:
        actor = Actor(core, Alone(core), Path(rom))
        prepared = operation.prepare(actor)
        print("prepared", flush=True)
        sys.stdin.readline()
        operation.act(actor, prepared)
        print("done", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
