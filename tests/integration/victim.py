"""A VMM process to be killed, stopped or looked at: stubs only, under another user when we are root.

It opens a session, a dataspace and a vCPU that never exits, says what it has on one line of JSON, and
then waits for the end of its input.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from vmsession.v1 import core_pb2

from tests.integration.running_core import RunningCore, Stubs, become_other_user
from tests.integration.stream_vmm import StreamVmm

ROOT = Path(__file__).parents[2]


class Victim:
    """Owns the process."""

    def __init__(self, core: RunningCore, engine: str, lease: str = "keep-alive") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.victim", core.socket, engine, lease],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        assert self.process.stderr
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        owned: dict[str, str] = json.loads(line)
        self.session = owned["session"]
        self.dataspace = owned["dataspace"]
        self.vcpu = owned["vcpu"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate()


def main() -> None:
    """The process itself."""
    become_other_user()
    socket, engine, lease = sys.argv[1:]
    stubs = Stubs(Path(socket))
    if lease == "keep-alive":
        beats = iter(stubs.core.KeepAlive(core_pb2.KeepAliveRequest()))
        next(beats)
        threading.Thread(target=_listen, args=(beats,), daemon=True).start()
    vmm = StreamVmm(stubs, engine, bytes.fromhex("ebfe"))
    vmm.start()
    print(
        json.dumps({"session": vmm.session, "dataspace": vmm.dataspace, "vcpu": vmm.vcpu}),
        flush=True,
    )
    sys.stdin.read()


def _listen(beats: Iterator[core_pb2.KeepAliveResponse]) -> None:
    with suppress(grpc.RpcError):
        for _ in beats:
            pass


if __name__ == "__main__":
    main()
