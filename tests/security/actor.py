"""A process of a user that does as it is told: it connects, owns, asks, passes on, forks.

Each command and each answer is a packet of JSON, which a file descriptor may go with.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

import grpc
from vmsession.v1 import core_pb2, dataspace_pb2, vm_session_pb2

from tests.integration.refusals import error_info, reason_of
from tests.integration.running_core import (
    OTHER_USER,
    ROOT,
    RunningCore,
    Stubs,
    become_other_user,
)

ALICE: Final = OTHER_USER
BOB: Final = OTHER_USER + 1
PAGE: Final = 4096
PACKET: Final = 1 << 20
PATIENCE: Final = 20.0


class Actor:
    """Owns the process. `before` is a command in front of its own."""

    def __init__(self, core: RunningCore, uid: int, before: Sequence[str] = ()) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.settimeout(PATIENCE)
        command = [sys.executable, "-m", "tests.security.actor", str(core.directory), str(uid)]
        with theirs:
            number = theirs.fileno()
            self.process = subprocess.Popen(
                [*before, *command, str(number)], cwd=ROOT, pass_fds=[number]
            )
        self.pid = int(self("pid"))

    def __call__(self, command: str, *arguments: Any, fd: int | None = None) -> Any:
        """The answer to one command, which `fd` goes with."""
        packet = json.dumps([command, *arguments]).encode()
        socket.send_fds(self._ours, [packet], [] if fd is None else [fd])
        answer, fds, _, _ = socket.recv_fds(self._ours, PACKET, 1)
        assert answer, "it ended"
        self.fd = fds[0] if fds else None
        return json.loads(answer)

    def passed(self, command: str) -> int:
        """The fd that comes with an answer; the caller closes it."""
        self(command)
        assert self.fd is not None
        return self.fd

    def end(self) -> None:
        """Kill it, whatever forked off; it is reaped."""
        self._ours.close()  # which ends who was forked
        self.process.kill()
        self.process.wait(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()


class Doing:
    """The process's side: what it has."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._dialled: socket.socket | None = None
        self._channel: socket.socket | None = None
        self._collected: list[int] = []
        self._stubs: Stubs | None = None
        self._lease: Any = None
        self.taken: int | None = None
        self.given: int | None = None

    @property
    def stubs(self) -> Stubs:
        """On a connection of its own, unless it speaks on another one."""
        if self._stubs is None:
            self._stubs = Stubs(self._directory / "core.sock")
        return self._stubs

    def pid(self) -> int:
        """Its own."""
        return os.getpid()

    def who(self) -> list[int]:
        """As core sees it."""
        client = self.stubs.core.GetInfo(core_pb2.GetInfoRequest(), timeout=PATIENCE).client
        return [client.uid, client.gid, client.pid]

    def lease(self) -> str:
        """A lease, by KeepAlive."""
        self._lease = self.stubs.core.KeepAlive(core_pb2.KeepAliveRequest())
        next(iter(self._lease))
        return "held"

    def own(self) -> dict[str, str]:
        """A session with a vCPU, and memory that is offered to whoever has the highest uid."""
        stubs = self.stubs
        self.lease()
        session = stubs.vm.CreateSession(
            vm_session_pb2.CreateSessionRequest(engine="soft", label="mine"), timeout=PATIENCE
        ).session.name
        dataspace = self.memory()
        vcpu = stubs.vm.CreateVcpu(
            vm_session_pb2.CreateVcpuRequest(
                session=session, transport=vm_session_pb2.TRANSPORT_STREAM
            )
        ).vcpu.name
        share = stubs.dataspaces.ShareDataspace(
            dataspace_pb2.ShareDataspaceRequest(dataspace=dataspace, uid=(1 << 32) - 2)
        ).share.name
        return {"session": session, "vcpu": vcpu, "dataspace": dataspace, "share": share}

    def memory(self) -> str:
        """A page of it."""
        request = dataspace_pb2.CreateDataspaceRequest(size=PAGE)
        return self.stubs.dataspaces.CreateDataspace(request, timeout=PATIENCE).dataspace.name

    def offer(self, dataspace: str, uid: int, pid: int) -> str:
        """Memory to one process."""
        request = dataspace_pb2.ShareDataspaceRequest(dataspace=dataspace, uid=uid, pid=pid)
        return self.stubs.dataspaces.ShareDataspace(request).share.name

    def accept(self, share: str) -> str:
        """What is offered."""
        request = dataspace_pb2.AcceptShareRequest(share=share)
        return self.stubs.dataspaces.AcceptShare(request).dataspace.name

    def dataspaces(self) -> list[str]:
        """Those that are its own."""
        request = dataspace_pb2.ListDataspacesRequest()
        return [each.name for each in self.stubs.dataspaces.ListDataspaces(request).dataspaces]

    def call(self, method: str, streaming: bool, request: str) -> list[Any]:
        """The answer in hex, or what a refusal says, to any method."""
        channel, raw = self.stubs.channel, bytes.fromhex(request)
        try:
            if streaming:
                stream = channel.stream_stream(method, None, None)(iter([raw]), timeout=PATIENCE)
                return ["OK", next(iter(stream)).hex()]
            unary = channel.unary_unary(method, None, None)(raw, timeout=PATIENCE)
        except grpc.RpcError as error:
            info = error_info(error)
            return [info.reason, cast("grpc.Call", error).details(), dict(info.metadata)]
        return ["OK", unary.hex()]

    # -- the fd channel

    def ticket(self) -> str:
        """For an fd channel."""
        return self.stubs.core.OpenFdChannel(core_pb2.OpenFdChannelRequest()).ticket

    def present(self, ticket: str) -> str:
        """Show a ticket on an fd channel: the taken one if there is one, else its own; the answer."""
        channel = self._new("fds.sock", socket.SOCK_SEQPACKET)
        channel.send(ticket.encode())
        answer = channel.recv(300).decode()
        if answer == "ok":
            self._channel = channel
        return answer

    def collect(self, request: str) -> str:
        """Ask the fd channel, and keep what it gives."""
        self.ask(request, 1)
        assert self._channel
        answer, fds, _, _ = socket.recv_fds(self._channel, 300, 1)
        self._collected += fds
        return answer.decode()

    def ask(self, request: str, times: int) -> str:
        """And do not read what comes."""
        assert self._channel
        for _ in range(times):
            self._channel.send(request.encode())
        return "asked"

    def stuff(self, request: str, channels: int, times: int) -> str:
        """Ask so often on so many channels, and read nothing."""
        opened = []
        for _ in range(channels):
            assert self.present(self.ticket()) == "ok"
            assert self._channel
            opened.append(self._channel)
            self.ask(request, times)
        self._stuffed = opened
        return "stuffed"

    def content(self) -> str:
        """Of what it collected last, from the start."""
        return os.pread(self._collected[-1], 16, 0).hex()

    def scribble(self, data: str) -> str:
        """Write to it."""
        os.pwrite(self._collected[-1], bytes.fromhex(data), 0)
        return "written"

    def let_go(self) -> str:
        """Of all that it collected."""
        while self._collected:
            os.close(self._collected.pop())
        return "gone"

    def give_channel(self) -> str:
        """Pass the open channel on."""
        assert self._channel
        self.given = self._channel.fileno()
        return "given"

    def take_channel(self) -> str:
        """The channel that came with this command is now its own."""
        self._channel = socket.socket(fileno=self.taken)
        self._channel.settimeout(PATIENCE)
        return "taken"

    # -- connections that go from hand to hand

    def dial(self) -> str:
        """Connect to the front door, and keep it for `speak`, or for somebody else."""
        self._dialled = self._new("core.sock", socket.SOCK_STREAM)
        return "connected"

    def dial_fds(self) -> str:
        """Connect to where fd channels begin, for `present`, or for somebody else."""
        self.taken = self._new("fds.sock", socket.SOCK_SEQPACKET).detach()
        return "connected"

    def give(self) -> str:
        """Pass on what was dialled."""
        self.given = self._dialled.fileno() if self._dialled else self.taken
        return "given"

    def take(self) -> str:
        """Keep the fd that came with this command for `present`."""
        return "taken"

    def speak(self) -> str:
        """From now on, call on the connection that came with this command, or that was dialled."""
        if self._dialled is None:
            self._dialled = socket.socket(fileno=self.taken)
        self._stubs = Stubs(relayed(self._dialled))
        return "speaks"

    def fork(self) -> int:
        """The child goes on in its place, while it waits for its end; the child's pid."""
        if os.fork():
            signal.pause()
        return os.getpid()

    def _new(self, name: str, kind: socket.SocketKind) -> socket.socket:
        if self.taken is not None:
            made, self.taken = socket.socket(fileno=self.taken), None
        else:
            made = socket.socket(socket.AF_UNIX, kind)
            made.connect(os.fspath(self._directory / name))
        made.settimeout(PATIENCE)
        return made


def relayed(connection: socket.socket) -> Path:
    """A path where gRPC finds a connection that is open already."""
    directory = Path(tempfile.mkdtemp(prefix="vmsession-test-relay-"))
    path = directory / "relay.sock"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.fspath(path))
    listening.listen(1)
    connection.settimeout(None)

    def relay() -> None:
        near, _ = listening.accept()
        listening.close()
        path.unlink()
        directory.rmdir()
        threading.Thread(target=pump, args=(near, connection), daemon=True).start()
        pump(connection, near)

    threading.Thread(target=relay, daemon=True).start()
    return path


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Bytes, until one of both ends."""
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def said(error: grpc.RpcError) -> str:
    """The reason of a refusal; the code where it is gRPC's own, of a connection that is gone."""
    try:
        return reason_of(error)
    except AssertionError:
        return str(cast("grpc.Call", error).code().name)


def main() -> None:
    """The process itself."""
    directory, uid, number = sys.argv[1:]
    become_other_user(int(uid))
    commands = socket.socket(fileno=int(number))
    doing = Doing(Path(directory))
    while True:
        packet, fds, _, _ = socket.recv_fds(commands, PACKET, 1)
        if not packet:
            os._exit(0)
        if fds:
            doing.taken = fds[0]
        command, *arguments = json.loads(packet)
        try:
            answer = getattr(doing, command)(*arguments)
        except grpc.RpcError as error:
            answer = said(error)
        except OSError as error:
            answer = type(error).__name__
        given, doing.given = doing.given, None
        socket.send_fds(commands, [json.dumps(answer).encode()], [given] if given else [])


if __name__ == "__main__":
    main()
