"""Somebody else's VMM: whatever happens to core, its guest counts on and its memory stays.

    python -m tests.faults.bystander SOCKET

runs its guest by shared memory; it does a line of its input each, and answers each with a line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.integration.running_core import ROOT, become_other_user
from vmm_client import Connection, Ram, Reason, Segment, connect

UID: Final = 64002
PAGE: Final = 4096
COUNTER: Final = bytes.fromhex("66ff060080 e6e9 ebf7")  # again: inc dword [0x8000]; out 0xe9, al


class Bystander:
    """Owns the process."""

    def __init__(self, socket: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.bystander", socket],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._exits = 0
        self.pid = self._process.pid
        self._answer()

    def must_go_on(self) -> None:
        """Its guest runs, from where it was, and core knows its session."""
        self._exits += 1
        assert self._ask("run") == [self._exits, 1]

    def offers(self, uid: int) -> str:
        """A share of memory that it keeps, for somebody else to accept."""
        return str(self._ask("offer", uid))

    def accepts(self, share: str) -> None:
        """It has what somebody offers, until that ends."""
        self._ask("accept", share)

    def forgets(self) -> None:
        """It frees what it offered and accepted."""
        self._ask("forget")

    def _ask(self, *words: object) -> Any:
        assert self._process.stdin
        print(json.dumps(words), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the bystander ended"
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()


class Vmm:
    """What the process has."""

    def __init__(self, core: Connection) -> None:
        self._core = core
        self._passing: list[Ram] = []
        self._memory = core.create_ram(16 * PAGE)
        self._session = core.create_session("soft", label="bystander")
        self._session.attach(self._memory, 0)
        self._memory.write(0, COUNTER)
        self._vcpu = self._session.create_vcpu()
        self._vcpu.run()
        self._vcpu.wait()
        self._vcpu.registers.update({"cs": Segment(0, 0x9B, 0xFFFF, 0), "rip": 0})

    def run(self) -> list[int]:
        """What the guest counted, and how many sessions with its name core has."""
        self._vcpu.run()
        exit_ = self._vcpu.wait(20)
        assert exit_
        assert exit_.reason is Reason.PORT
        sessions = [each.name for each in self._core.sessions()]
        counted = int.from_bytes(self._memory.read(0x8000, 4), "little")
        return [counted, sessions.count(self._session.name)]

    def offer(self, uid: int) -> str:
        self._passing.append(self._core.create_ram(PAGE))
        return self._passing[-1].share(uid).name

    def accept(self, share: str) -> str:
        self._passing.append(self._core.accept(share))
        return self._passing[-1].name

    def forget(self) -> None:
        while self._passing:
            self._passing.pop().close()


def main() -> None:
    """The process itself."""
    become_other_user(UID)
    with connect(sys.argv[1]) as core:
        vmm = Vmm(core)
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            deed, *arguments = json.loads(line)
            print(json.dumps(getattr(vmm, deed)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
