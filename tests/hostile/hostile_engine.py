"""An engine that is core's enemy: it answers rightly, wrongly, twice, late, never or unasked, floods,
sends fds, and ends as it likes.

    python -m tests.hostile.hostile_engine SEED DIRECTORY [brief]

Each engine takes the next number of those in DIRECTORY, and makes the choices of SEED and that number. A
brief one does not do what takes core seconds to notice.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from random import Random
from typing import Final

from core_service.engine import protocol
from core_service.engine.protocol import CHANNEL_FD, Status, Type
from dataspace.vcpu_page import ABI, ALL_SCALARS, FPU_BIT, FPU_BYTES, HALF_BYTES, Reason

FLOOD: Final = 3000
FDS: Final = 200
LARGE: Final = 100_000
PATIENT: Final = 600  # seconds; then it is nobody's any more
EXIT_SEQ_AT, REASON_AT, MASKS_AT = 0x40, 0x80, 0x200
SIGNALS: Final = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM)

Reply = Callable[[int, int], None]


class HostileEngine:
    """Core's peer."""

    def __init__(self, chance: Random, *, brief: bool) -> None:
        self._chance = chance
        self._brief = brief
        self._channel = socket.socket(fileno=CHANNEL_FD)
        self._held: list[int] = []
        self._late: list[tuple[int, int]] = []
        self._exits = count(1)

    def main(self) -> None:
        """Never returns."""
        signal.alarm(PATIENT)
        self._greet()
        honest = self._chance.random()  # how often it answers as it should
        while True:
            kind, number = self._request()
            if self._chance.random() < honest:
                self._answer(kind, number)
            else:
                self._misbehave(kind, number)

    def _greet(self) -> None:
        chance = self._chance
        hello = self._hello()
        pick = chance.random()
        if pick < 0.85:
            self._send(hello)
        elif pick < 0.92:
            self._send(self._spoiled(hello))
        elif pick < 0.97:
            self._misbehave(0, 0)
            self._send(hello)
        else:
            raise SystemExit

    def _hello(self) -> bytes:
        segments = protocol.KNOWN_SEGMENTS
        return protocol.HELLO.pack(
            *(Type.HELLO, 0, protocol.VERSION, ABI, b"hostile", protocol.KNOWN_CAPABILITIES),
            *(protocol.VCPUS, 1_000_000, 40, ALL_SCALARS, segments, protocol.KNOWN_REASONS),
        )

    def _request(self) -> tuple[int, int]:
        """Type and number; at the channel's end this ends, or stays until it is killed."""
        packet, fds, _, _ = socket.recv_fds(self._channel, protocol.PACKET_LIMIT, 4)
        self._held += fds
        if not packet:
            if not self._brief and self._chance.random() < 0.05:
                self._stay()
            raise SystemExit
        kind, number = protocol.header(packet)
        return kind, number

    def _stay(self) -> None:
        while True:
            signal.pause()

    def _send(self, packet: bytes, fds: list[int] | None = None) -> None:
        with suppress(OSError):
            socket.send_fds(self._channel, [packet], fds or [])

    # -- what it says

    def _answer(self, kind: int, number: int) -> None:
        if kind == Type.GET_STATE:
            self._send(self._vcpu(Type.STATE, number))
        elif kind == Type.GET_CPUID:
            self._send(protocol.CPUID.pack(Type.CPUID, number, 0, 3, self._leaves()))
        elif kind == Type.LIST_MAPPINGS:
            self._send(self._mappings(number, 0))
        else:
            self._send(self._response(number, Status.OK))
            if kind == Type.RUN:
                self._send(self._vcpu(Type.EXIT, 0))

    def _response(self, number: int, status: int) -> bytes:
        text = self._chance.choice((b"", b"as told", b"\xff" * 232, b"\x1b[2J\n\0", b"%s%n"))
        return protocol.RESPONSE.pack(Type.RESPONSE, number, status, 0, text)

    def _vcpu(self, kind: Type, number: int) -> bytes:
        """An exit or a state, with registers of any value."""
        chance = self._chance
        half = bytearray(chance.randbytes(HALF_BYTES) if chance.random() < 0.3 else HALF_BYTES)
        if half[REASON_AT : REASON_AT + 64] != bytes(64):
            half[REASON_AT : REASON_AT + 128] = bytes(128)
        struct.pack_into("<I", half, EXIT_SEQ_AT, next(self._exits))
        struct.pack_into("<I", half, REASON_AT, chance.choice(list(Reason)[1:]))
        fpu = chance.random() < 0.2
        struct.pack_into("<I", half, 0x14, FPU_BYTES if fpu else 0)
        segments = chance.getrandbits(10) | fpu << FPU_BIT
        struct.pack_into("<QQ", half, MASKS_AT, chance.getrandbits(64) & ALL_SCALARS, segments)
        packet = protocol.EXIT.pack(kind, number, chance.choice((0, 0, 0, 1, 63)), 0, bytes(half))
        return packet + chance.randbytes(FPU_BYTES) * fpu

    def _leaves(self) -> bytes:
        return self._chance.randbytes(3 * protocol.LEAF.size)

    def _mappings(self, number: int, first: int) -> bytes:
        chance = self._chance
        total = chance.choice((0, 1, 119, 120, 121, 1000, 1 << 18, (1 << 32) - 1))
        entries = min(max(total - first, 0), chance.choice((1, protocol.MAPPING_ENTRIES)))
        entry = protocol.MAPPING.pack(
            0x1000, chance.getrandbits(47), 4096, 0, 7, 1, chance.choice((0, 1))
        )
        table = (entry * entries).ljust(protocol.MAPPING_ENTRIES * protocol.MAPPING.size, b"\0")
        return protocol.MAPPINGS.pack(Type.MAPPINGS, number, first, total, entries, 0, table)

    def _anything(self, number: int) -> bytes:
        """A packet of any type, of core's own too."""
        chance = self._chance
        whole = (
            self._hello(),
            self._response(number, chance.choice((*Status, 99))),
            self._vcpu(Type.EXIT, 0),
            self._vcpu(Type.STATE, number),
            protocol.CPUID.pack(
                Type.CPUID, number, 0, chance.choice((0, 160, 161)), self._leaves()
            ),
            self._mappings(number, chance.choice((0, 1, 120, 1 << 31))),
            protocol.RESPONSE.pack(Type.FAILED, 0, 0, 0, b"I do not want to"),
            protocol.vcpu_packet(chance.choice(list(Type)), number, 0),
        )
        return chance.choice(whole)

    def _spoiled(self, packet: bytes) -> bytes:
        chance = self._chance
        spoiled = bytearray(
            packet[: chance.randrange(len(packet) + 1)] if chance.random() < 0.3 else packet
        )
        for _ in range(chance.randint(1, 6) if spoiled else 0):
            spoiled[chance.randrange(len(spoiled))] = chance.getrandbits(8)
        return bytes(spoiled) + chance.randbytes(chance.choice((0, 0, 0, 8, LARGE)))

    # -- what it does

    def _misbehave(self, kind: int, number: int) -> None:
        deeds: tuple[tuple[float, Reply], ...] = (
            (3, self._refuse),
            (3, self._say_anything),
            (3, self._say_something_spoiled),
            (2, self._answer_twice),
            (2, self._exit_at_will),
            (1, self._flood),
            (2, self._send_fds),
            (0.5, self._close_half),
            (1, self._die),
        )
        slow: tuple[tuple[float, Reply], ...] = (
            (2, self._answer_later),
            (0.2, self._never_answer),
            (0.1, self._stop),
        )
        weights, does = zip(*deeds, *(() if self._brief else slow), strict=True)
        self._chance.choices(does, weights)[0](kind, number)

    def _refuse(self, _kind: int, number: int) -> None:
        self._send(self._response(number, self._chance.choice(list(Status)[1:])))

    def _say_anything(self, kind: int, number: int) -> None:
        self._send(self._anything(number))
        self._answer(kind, number)

    def _say_something_spoiled(self, kind: int, number: int) -> None:
        self._send(self._spoiled(self._anything(number)))
        self._answer(kind, number)

    def _answer_twice(self, kind: int, number: int) -> None:
        self._answer(kind, number)
        self._answer(kind, number)

    def _answer_later(self, kind: int, number: int) -> None:
        self._late.append((kind, number))
        if len(self._late) > 3:
            self._chance.shuffle(self._late)
            while self._late:
                self._answer(*self._late.pop())

    def _never_answer(self, _kind: int, _number: int) -> None:
        pass

    def _exit_at_will(self, kind: int, number: int) -> None:
        for _ in range(self._chance.randint(1, 3)):
            self._send(self._vcpu(Type.EXIT, 0))
        self._answer(kind, number)

    def _flood(self, _kind: int, number: int) -> None:
        packet = self._chance.choice((self._anything(number), self._response(number, 0), b"x", b""))
        for _ in range(FLOOD):
            self._send(packet)

    def _send_fds(self, _kind: int, number: int) -> None:
        """Its own, or those that it was given."""
        fds = [*self._held, CHANNEL_FD, 0]
        self._send(self._response(number, Status.OK), self._chance.choices(fds, k=FDS))

    def _close_half(self, kind: int, number: int) -> None:
        self._channel.shutdown(self._chance.choice((socket.SHUT_RD, socket.SHUT_WR)))
        self._answer(kind, number)
        self._stay()

    def _die(self, _kind: int, _number: int) -> None:
        if self._chance.random() < 0.3:
            raise SystemExit(self._chance.choice((0, 1, 255)))
        os.kill(os.getpid(), self._chance.choice(SIGNALS))

    def _stop(self, _kind: int, _number: int) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)


def next_number(directory: Path) -> int:
    """That no other engine has."""
    for number in count(len(list(directory.iterdir()))):
        with suppress(FileExistsError):
            (directory / str(number)).touch(exist_ok=False)
            return number
    raise AssertionError


def main() -> None:
    """The process itself."""
    seed, directory, *brief = sys.argv[1:]
    chance = Random(f"{seed}/{next_number(Path(directory))}")
    HostileEngine(chance, brief=bool(brief)).main()


if __name__ == "__main__":
    main()
