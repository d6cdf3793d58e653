"""A process that watches the audit log: `watchers SOCKET WATCHES`. It says `ready`; told a revision, it
says when, by CLOCK_MONOTONIC in ns, the last of its watches had seen that one."""

from __future__ import annotations

import sys
import threading
from time import monotonic_ns

from vmm_client import Connection, connect


class Seen:
    """How far one watch has come."""

    def __init__(self, core: Connection) -> None:
        self._core = core
        self._moved = threading.Condition()
        self.revision = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        for told in self._core.watch():
            with self._moved:
                self.revision = told.event.revision or told.snapshot.revision or self.revision
                self._moved.notify()

    def wait(self, revision: int) -> None:
        """Until it has come to a revision."""
        with self._moved:
            self._moved.wait_for(lambda: self.revision >= revision)


def main() -> None:
    """The process itself."""
    socket, watches = sys.argv[1], int(sys.argv[2])
    with connect(socket) as core:
        watched = [Seen(core) for _ in range(watches)]
        for one in watched:
            one.wait(1)
        print("ready", flush=True)
        for line in sys.stdin:
            for one in watched:
                one.wait(int(line))
            print(monotonic_ns(), flush=True)


if __name__ == "__main__":
    main()
