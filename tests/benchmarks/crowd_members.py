"""Many VMM processes: `crowd_members SOCKET ENGINE UID CLIENTS SESSIONS`. Each holds SESSIONS idle
virtual machines and asks core for one of them each second, on average. It says `ready`; each line of
its input is answered by the longest, in us, that any of them waited since the line before."""

from __future__ import annotations

import os
import select
import socket
import sys
from dataclasses import dataclass
from random import random
from time import perf_counter_ns
from typing import Final

from vmsession.v1.vm_session_pb2 import GetSessionRequest

from tests.integration.running_core import become_other_user
from vmm_client import Connection, Session, connect

PAGE: Final = 4096
PERIOD: Final = 1.0  # seconds between two calls of one client, on average


@dataclass(frozen=True, slots=True)
class Member:
    """A child process, and the socket to it."""

    pid: int
    line: socket.socket

    def answer(self) -> str:
        """What it says next. Raises EOFError."""
        if not (said := self.line.recv(64)):
            raise EOFError(f"client {self.pid} ended")
        return said.decode()


def machine(core: Connection, engine: str) -> Session:
    """A session with a page of memory and a vCPU at its first exit."""
    session, ram = core.create_session(engine, label="crowd"), core.create_ram(PAGE)
    session.attach(ram, gpa=0)
    next(session.create_vcpu().exits())
    return session


def live(line: socket.socket, path: str, engine: str, sessions: int) -> None:
    """One client, until the other end of `line` is closed."""
    with connect(path) as core:
        machines = [machine(core, engine) for _ in range(sessions)]
        request = GetSessionRequest(name=machines[0].name)
        line.send(b"ready")
        longest = 0
        while True:
            if not select.select([line], [], [], random() * 2 * PERIOD)[0]:
                start = perf_counter_ns()
                core.rpc.call(core.vm_sessions.GetSession, request)
                longest = max(longest, perf_counter_ns() - start)
            elif line.recv(64):
                line.send(b"%d" % (longest // 1000))
                longest = 0
            else:
                return


def born(path: str, engine: str, sessions: int) -> Member:
    """Fork a client, before this process has any thread."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        theirs.close()
        return Member(pid, ours)
    ours.close()
    try:
        live(theirs, path, engine, sessions)
    finally:
        sys.stderr.flush()
        os._exit(0)


def main() -> None:
    """The process itself."""
    path, engine, uid, clients, sessions = sys.argv[1:]
    become_other_user(int(uid))
    members: list[Member] = []
    for _ in range(int(clients)):
        members.append(born(path, engine, int(sessions)))
        assert members[-1].answer() == "ready"
    print("ready", flush=True)
    for _ in sys.stdin:
        for member in members:
            member.line.send(b"tell")
        print(max(int(member.answer()) for member in members), flush=True)


if __name__ == "__main__":
    main()
