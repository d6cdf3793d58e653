"""A real core on a temporary socket, for one test or many."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import grpc
from vmsession.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    core_pb2_grpc,
    dataspace_pb2_grpc,
    vm_session_pb2_grpc,
)

OTHER_USER: Final = 64001
ROOT: Final = Path(__file__).parents[2]
VMCORE: Final = str(Path(sys.executable).parent / "vmcore")


class RunningCore:
    """Owns a `vmcore serve` process and its directory."""

    def __init__(self, *options: str, command: tuple[str, ...] = (VMCORE,)) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="vmsession-test-"))
        self.directory.chmod(0o777 if command != (VMCORE,) else 0o755)
        self.socket = self.directory / "core.sock"
        self.audit = self.directory / "audit"
        self._log = (self.directory / "log").open("w+")
        self.command = [
            *command,
            "serve",
            "--directory",
            str(self.directory),
            "--audit-directory",
            str(self.audit),
            "--socket-mode",
            "666",
            *options,
        ]
        self.process = self._started()
        try:
            self._must_serve()
        except BaseException:  # nobody has it yet who could close it
            self.close()
            raise

    def _started(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=self._log, text=True
        )

    def restart(self, how: signal.Signals) -> None:
        """End core by a signal, and start the next one in its place, which must serve."""
        self.process.send_signal(how)
        self.process.wait(20)
        assert self.process.stdout
        self.process.stdout.close()
        self.process = self._started()
        self._must_serve()

    def _must_serve(self) -> None:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line == f"vmcore: serving on {self.socket}\n", self.log()

    def log(self) -> str:
        """What core logged so far."""
        self._log.flush()
        return (self.directory / "log").read_text()

    def must_agree(self) -> None:
        """Core's books, the engines, the kernel and the log must agree, whatever the test left."""
        stubs = Stubs(self.socket)
        try:
            found = stubs.verify().discrepancies
        finally:
            stubs.close()
        assert not found, f"{found}\n{self.log()}"

    def stop(self) -> None:
        """SIGINT; core must be right to its end, end in order and leave no socket."""
        self.must_agree()
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(20)
        assert status == 0, self.log()
        assert not self.socket.exists()
        assert not (self.directory / "fds.sock").exists()

    def kill(self) -> None:
        """kill -9."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)

    def close(self) -> None:
        """Let go of everything, whatever state core is in."""
        if self.process.poll() is None:
            self.kill()
        assert self.process.stdout
        self.process.stdout.close()
        self._log.close()
        shutil.rmtree(self.directory)

    def engine_pids(self) -> list[int]:
        """The engine processes that core has as children."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        engines = []
        for pid in children.split():
            with suppress(OSError):  # it ended, and core reaped it, in this moment
                if b"vmsession-" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    engines.append(int(pid))
        return engines


class Stubs:
    """Generated stubs on one channel: all that a VMM of any language has."""

    def __init__(self, socket: Path) -> None:
        self.channel = grpc.insecure_channel(
            f"unix:{socket}", [("grpc.use_local_subchannel_pool", 1)]
        )
        self.core = core_pb2_grpc.CoreServiceStub(self.channel)
        self.vm = vm_session_pb2_grpc.VmSessionServiceStub(self.channel)
        self.dataspaces = dataspace_pb2_grpc.DataspaceServiceStub(self.channel)
        self.audit = audit_pb2_grpc.AuditServiceStub(self.channel)

    def totals(self) -> audit_pb2.GetTotalsResponse:
        """The audit's sums."""
        return self.audit.GetTotals(audit_pb2.GetTotalsRequest())

    def verify(self) -> audit_pb2.VerifyResponse:
        """What core's verification finds, of all that it has and ever had."""
        return self.audit.Verify(audit_pb2.VerifyRequest(whole_chain=True))

    def close(self) -> None:
        """Close the channel."""
        self.channel.close()


def cancel(call: Any) -> None:
    """Cancel a call; gRPC's stubs leave that untyped."""
    call.cancel()


def become_other_user(uid: int = OTHER_USER) -> None:
    """Root drops to a user of its own, after its imports: that user need not reach our files."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
