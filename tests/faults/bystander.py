"""Somebody else's VMM: whatever happens to core, its guest counts on and its memory stays.

    python -m tests.faults.bystander SOCKET UID

runs its guest by shared memory; it does a line of its input each, and answers each with a line of JSON.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from vmsession.v1 import core_pb2, core_pb2_grpc

from tests.integration.running_core import ROOT, become_other_user
from vmm_client import Connection, Ram, Reason, Segment, connect

UID: Final = 64002
PAGE: Final = 4096
FDS_ASKED: Final = 3
COUNTER: Final = bytes.fromhex("66ff060080 e6e9 ebf7")  # again: inc dword [0x8000]; out 0xe9, al


class Bystander:
    """Owns the process."""

    def __init__(self, socket: Path, uid: int = UID) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.bystander", socket, str(uid)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._exits = 0
        self.uid = uid if os.geteuid() == 0 else os.geteuid()
        self.pid = self._process.pid
        self._answer()

    def must_go_on(self) -> None:
        """Its guest runs, from where it was, and core knows its session."""
        self._exits += 1
        assert self._ask("run") == [self._exits, 1]

    def must_run(self) -> None:
        """Its guest does, whether there is a core or not."""
        self._exits += 1
        assert self._ask("run_alone") == self._exits

    def offers(self, uid: int) -> str:
        """A share of memory that it keeps, for somebody else to accept."""
        return str(self._ask("offer", uid))

    def accepts(self, share: str) -> None:
        """It has what somebody offers, until that ends."""
        self._ask("accept", share)

    def forgets(self) -> None:
        """It frees what it offered and accepted."""
        self._ask("forget")

    def leaves(self) -> None:
        """It ends in order."""
        self._process.communicate()
        assert self._process.returncode == 0

    def leaves_all_unread(self) -> None:
        """It has a stream with an exit, fds and a watch, and reads none of them from now on."""
        self._ask("leave_unread")

    def must_read_all(self) -> None:
        """What it left is as it was, and its watch tells everything, or what it does not tell."""
        exit_, fds, watched, last = self._ask("read_all")
        assert (exit_, fds) == (Reason.STARTUP, FDS_ASKED)
        assert watched == last

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
        assert self._process.stdin
        assert self._process.stdout
        self._process.kill()
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


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

    def run_alone(self) -> int:
        """What the guest counted."""
        self._vcpu.run()
        exit_ = self._vcpu.wait(20)
        assert exit_
        assert exit_.reason is Reason.PORT
        return int.from_bytes(self._memory.read(0x8000, 4), "little")

    def run(self) -> list[int]:
        """That, and how many sessions with its name core has."""
        counted = self.run_alone()
        return [counted, [each.name for each in self._core.sessions()].count(self._session.name)]

    def offer(self, uid: int) -> str:
        self._passing.append(self._core.create_ram(PAGE))
        return self._passing[-1].share(uid).name

    def accept(self, share: str) -> str:
        self._passing.append(self._core.accept(share))
        return self._passing[-1].name

    def leave_unread(self) -> None:
        self._stream = self._session.create_vcpu(1, stream=True)
        self._stream.run()
        ticket = core_pb2_grpc.CoreServiceStub(self._core.rpc.channel).OpenFdChannel(
            core_pb2.OpenFdChannelRequest()
        )
        self._fds = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._fds.connect(ticket.path)
        self._fds.send(ticket.ticket.encode())
        assert self._fds.recv(100) == b"ok"
        for _ in range(FDS_ASKED):
            self._fds.send(self._memory.name.encode())
        self._watch = self._core.watch()
        self._watched = next(self._watch).snapshot.revision

    def read_all(self) -> list[object]:
        """The reason of the exit, how many fds came, the last event that the watch told without a gap,
        and the last there is."""
        exit_ = self._stream.wait(20)
        assert exit_
        fds = 0
        for _ in range(FDS_ASKED):
            answer, (fd,), _, _ = socket.recv_fds(self._fds, 100, 4)
            assert answer == b"ok"
            os.close(fd)
            fds += 1
        last = self._core.totals().revision
        at = self._watched
        while at < last:
            message = next(self._watch)
            if message.HasField("event"):
                assert message.event.revision == at + 1
                at += 1
            elif message.HasField("lagged"):
                assert message.lagged.first == at + 1
                at = message.lagged.last
        return [int(exit_.reason), fds, at, last]

    def forget(self) -> None:
        while self._passing:
            self._passing.pop().close()


def main() -> None:
    """The process itself."""
    become_other_user(int(sys.argv[2]))
    with connect(sys.argv[1]) as core:
        vmm = Vmm(core)
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            deed, *arguments = json.loads(line)
            print(json.dumps(getattr(vmm, deed)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
