"""Clients of the fd channel, and of the public socket beneath gRPC, that keep no rule: hundreds of
connections, tickets of any kind, floods, fds that nobody wants, half-closed ones and silent ones.

    python -m tests.hostile.fd_attacker SOCKET UID SEED SECONDS NAME...

NAMEs are of objects of others. See `attackers.py`.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final

import grpc
from vmsession.v1 import core_pb2, dataspace_pb2

from core_service.refusal import CODES
from tests.hostile.attackers import Findings
from tests.integration.running_core import Stubs, become_other_user

HELD: Final = (40, 40, 150)  # connections kept at once; core lets a user have 64 without a ticket
OPEN: Final = 14  # channels among them that showed a ticket: core lets a client have 16
FORGETS: Final = 0.02
WASTES: Final = 0.02  # of tickets, of which a client may have 16 that are not spent
FDS: Final = 253  # of one packet: SCM_MAX_FD, net/scm.h
PACKET: Final = 300
FLOOD: Final = 60
PATIENCE: Final = 20.0
PAGE: Final = 4096


class Attacker:
    """Owns its connections, a dataspace, and what it found."""

    def __init__(self, core: Path, chance: Random, others: list[str]) -> None:
        self.findings = Findings()
        self._chance = chance
        self._most = chance.choice(HELD)
        self._core = core
        self._stubs = Stubs(core)
        self._held: list[socket.socket] = []
        self._open: list[socket.socket] = []
        self._spent: list[str] = []
        create = dataspace_pb2.CreateDataspaceRequest(size=PAGE)
        self._mine = self._stubs.dataspaces.CreateDataspace(create, timeout=PATIENCE).dataspace.name
        self._names = [self._mine, f"{self._mine} read-only", *others]

    def attack(self, seconds: float) -> None:
        """So long."""
        end = time.monotonic() + seconds
        deeds: tuple[Callable[[], None], ...] = (
            self._be_silent,
            self._show_a_bad_ticket,
            self._behave,
            self._ask_anything,
            self._flood,
            self._not_read,
            self._send_fds,
            self._half_close,
            self._leave_at_once,
            self._knock,
        )
        while time.monotonic() < end:
            deed = self._chance.choice(deeds)
            with suppress(OSError):  # core closed it, as it may
                deed()
            self.findings.outcomes[deed.__name__.strip("_")] += 1
            self._let_go()

    def _let_go(self) -> None:
        for kept, most in ((self._held, self._most), (self._open, OPEN)):
            left = 0 if self._chance.random() < FORGETS else most
            while len(kept) > left:
                kept.pop(self._chance.randrange(len(kept))).close()

    # -- what it does

    def _be_silent(self) -> None:
        self._held.append(self._connected())

    def _show_a_bad_ticket(self) -> None:
        chance = self._chance
        channel = self._held_channel()
        bad = [b"\0", b"x" * 32, b"x" * 257, b"y" * 60_000, chance.randbytes(32), b"\xff\xfe"]
        bad += [ticket.encode() for ticket in self._spent]
        if chance.random() < WASTES:
            bad = [self._ticket()[:31].encode()]
        channel.send(chance.choice(bad))
        if self._answer(channel)[0].startswith(b"ok"):
            self.findings.wrong.append("a bad ticket opened a channel")

    def _behave(self) -> None:
        """What core owes to those who keep the rules, this process too."""
        channel = self._opened()
        if channel is None:
            return
        with channel:
            channel.send(self._mine.encode())
            answer, fds = self._answer(channel)
            if (answer, fds) != (b"ok", 1):
                self.findings.wrong.append(f"{answer!r} with {fds} fds for what is its own")

    def _ask_anything(self) -> None:
        """Requests that are none. What is not its own is never given."""
        chance = self._chance
        channel = self._opened()
        if channel is None:
            return
        for _ in range(chance.randint(1, 10)):
            asked = self._request()
            channel.send(asked)
            answer, fds = self._answer(channel)
            if not answer:
                return
            self._judge(asked, answer, fds)

    def _flood(self) -> None:
        """Asked without an end, and read at last."""
        channel = self._opened()
        if channel is None:
            return
        channel.setblocking(False)
        with suppress(BlockingIOError):
            for _ in range(FLOOD):
                channel.send(self._request())
        for _ in range(self._chance.randint(0, FLOOD)):
            if not self._answer(channel)[0]:
                return

    def _not_read(self) -> None:
        """An fd in flight that nobody takes."""
        channel = self._opened()
        if channel is not None:
            channel.send(self._mine.encode())

    def _send_fds(self) -> None:
        """Core takes none, before a ticket and after it, on either socket."""
        chance = self._chance
        channel = chance.choice((self._held_channel, self._opened, self._at_the_door))()
        if channel is None:
            return
        ours, theirs = socket.socketpair()
        with ours, theirs:
            fds = [theirs.fileno(), channel.fileno()] * (FDS // 2)
            told = self._request()
            for _ in range(chance.randint(1, 8)):
                socket.send_fds(channel, [told], fds[: chance.choice((1, 2, len(fds)))])

    def _half_close(self) -> None:
        chance = self._chance
        channel = chance.choice((self._held_channel, self._opened, self._at_the_door))()
        if channel is None:
            return
        channel.shutdown(chance.choice((socket.SHUT_RD, socket.SHUT_WR)))
        channel.send(self._request())

    def _leave_at_once(self) -> None:
        """In the midst of what core does for it."""
        channel = self._chance.choice((self._held_channel, self._opened, self._at_the_door))()
        if channel is None:
            return
        with channel:
            channel.send(self._request())

    def _knock(self) -> None:
        """Bytes that are no HTTP/2, whole or a few of them."""
        chance = self._chance
        channel = self._at_the_door()
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        channel.send(
            chance.choice(
                (
                    chance.randbytes(chance.choice((1, 100, 60_000))),
                    preface[: chance.randrange(len(preface))],
                    preface + chance.randbytes(200),
                    preface + b"\xff\xff\xff\x00\x00\x00\x00\x00\x00" * 50,
                )
            )
        )

    # -- the pieces

    def _connected(self) -> socket.socket:
        return self._connect(self._core.with_name("fds.sock"), socket.SOCK_SEQPACKET)

    def _at_the_door(self) -> socket.socket:
        channel = self._connect(self._core, socket.SOCK_STREAM)
        self._held.append(channel)
        return channel

    @staticmethod
    def _connect(path: Path, kind: socket.SocketKind) -> socket.socket:
        channel = socket.socket(socket.AF_UNIX, kind)
        channel.settimeout(PATIENCE)
        channel.connect(os.fspath(path))
        return channel

    def _held_channel(self) -> socket.socket:
        channel = self._connected()
        self._held.append(channel)
        return channel

    def _ticket(self) -> str:
        """Empty where there are too many that were not spent."""
        try:
            return self._stubs.core.OpenFdChannel(
                core_pb2.OpenFdChannelRequest(), timeout=PATIENCE
            ).ticket
        except grpc.RpcError:
            return ""

    def _opened(self) -> socket.socket | None:
        """A channel with a ticket, unless there are too many."""
        ticket, channel = self._ticket(), self._connected()
        channel.send(ticket.encode() or b"none")
        self._spent = [*self._spent[-9:], ticket]
        if self._answer(channel)[0] != b"ok":
            channel.close()
            return None
        self._open.append(channel)
        return channel

    def _request(self) -> bytes:
        chance = self._chance
        if chance.random() < 0.5:
            return chance.choice(self._names).encode()
        return chance.choice(
            (
                *(b"\0", b" ", b"7", b"7 ", b"9" * 250 + b" x", b"x" * 256, b"x" * 257, b"%s%n"),
                *(chance.randbytes(chance.choice((1, 100, 255))), b"7 " + self._mine.encode()),
                *(self._mine.encode() + b" read-write", b"sessions/x/vcpus/0", b"dataspaces/../x"),
                *(self._mine.upper().encode(), b"8 " + self._mine.encode() + b" read-only"),
            )
        )

    def _answer(self, channel: socket.socket) -> tuple[bytes, int]:
        """What core says, and how many fds came; empty at the channel's end."""
        if not select.select([channel], [], [], PATIENCE)[0]:
            self.findings.wrong.append("core does not answer")
            return b"", 0
        try:
            answer, fds, _, _ = socket.recv_fds(channel, PACKET, 4)
        except OSError:
            return b"", 0
        for fd in fds:
            os.close(fd)
        return answer, len(fds)

    def _judge(self, asked: bytes, answer: bytes, fds: int) -> None:
        verdict, *rest = answer.decode(errors="replace").split(" ")
        reason = next((word for word in rest if not word.isdecimal()), "")
        mine = self._mine.encode() in asked and b"read-write" not in asked
        if verdict == "ok" and mine and fds == 1:
            self.findings.outcomes["an fd of its own"] += 1
        elif verdict == "error" and reason in CODES and not fds:
            self.findings.outcomes[f"refused: {reason}"] += 1
        else:
            self.findings.wrong.append(f"{asked!r} was answered {answer!r} with {fds} fds")


def main() -> None:
    """The process itself."""
    socket_, uid, seed, seconds, *names = sys.argv[1:]
    become_other_user(int(uid))
    attacker = Attacker(Path(socket_), Random(seed), names)
    attacker.attack(float(seconds))
    attacker.findings.tell()


if __name__ == "__main__":
    main()
