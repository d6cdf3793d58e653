"""An innocent client: while others attack core, it must be served, quickly and rightly.

    python -m tests.hostile.witness SOCKET

has memory and a session, says so in a line of JSON, asks core something each 50 ms until its input
ends, and says in another line what it saw. It asks for calls, and for an fd over a channel of its own.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
from vmsession.v1 import core_pb2, dataspace_pb2, vm_session_pb2

from tests.hostile.machine import FdChannel
from tests.integration.running_core import ROOT, Stubs, become_other_user, cancel

UID: Final = 64003
EVERY_SECONDS: Final = 0.05
PATIENCE: Final = 20.0
CONTENT: Final = b"nobody else's"
SIZE: Final = 4096


@dataclass
class Sight:
    """What it saw: its calls, the longest one in seconds, and what went wrong."""

    calls: int = 0
    worst: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Witness:
    """Owns the process. `names` are those of its objects."""

    def __init__(self, socket: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.witness", socket],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        self.names: list[str] = json.loads(self._process.stdout.readline())

    def end(self) -> Sight:
        """Its word."""
        told, _ = self._process.communicate("", timeout=2 * PATIENCE)
        return Sight(**json.loads(told))

    def close(self) -> None:
        """Whatever state it is in."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def main() -> None:
    """The process itself."""
    if os.geteuid() == 0:
        become_other_user(UID)
    stubs = Stubs(Path(sys.argv[1]))
    lease = stubs.core.KeepAlive(core_pb2.KeepAliveRequest())
    next(iter(lease))
    memory = stubs.dataspaces.CreateDataspace(
        dataspace_pb2.CreateDataspaceRequest(size=SIZE), timeout=PATIENCE
    ).dataspace.name
    stubs.dataspaces.WriteDataspace(
        dataspace_pb2.WriteDataspaceRequest(name=memory, data=CONTENT), timeout=PATIENCE
    )
    session = stubs.vm.CreateSession(
        vm_session_pb2.CreateSessionRequest(engine="soft", label="witness"), timeout=PATIENCE
    ).session.name
    print(json.dumps([memory, session]), flush=True)
    sight = watch(Path(sys.argv[1]), stubs, memory, session)
    print(json.dumps(vars(sight)), flush=True)
    cancel(lease)
    stubs.close()


def watch(core: Path, stubs: Stubs, memory: str, session: str) -> Sight:
    """Ask, and look at the answers, until the input ends."""
    sight = Sight()
    while not select.select([sys.stdin], [], [], EVERY_SECONDS)[0]:
        began = time.monotonic()
        try:
            ask(stubs, memory, session)
            collect(stubs, core, memory)
        except (grpc.RpcError, AssertionError, OSError) as error:
            sight.wrong.append(repr(error))
        sight.calls += 1
        sight.worst = max(sight.worst, time.monotonic() - began)
    return sight


def ask(stubs: Stubs, memory: str, session: str) -> None:
    """What is its own is as it was."""
    read = dataspace_pb2.ReadDataspaceRequest(name=memory, size=len(CONTENT))
    answer = stubs.dataspaces.ReadDataspace(read, timeout=PATIENCE).data
    assert answer == CONTENT, answer
    stubs.vm.GetSession(vm_session_pb2.GetSessionRequest(name=session), timeout=PATIENCE)


def collect(stubs: Stubs, core: Path, memory: str) -> None:
    """Its memory is at the end of the fd that it gets."""
    channel = FdChannel(stubs, core)
    try:
        fd = channel.collect(memory)
        assert fd is not None, "no fd"
        answer = os.pread(fd, len(CONTENT), 0)
        os.close(fd)
        assert answer == CONTENT, answer
    finally:
        channel.close()


if __name__ == "__main__":
    main()
