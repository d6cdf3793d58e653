"""An engine that executes nothing, and behaves as badly as it is told: what core must survive.

Run as a program it is the engine; its argument names the behaviour.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Final

CHANNEL: Final = 3
HELLO, EXIT, FAILED, RESPONSE, CPUID, MAPPINGS = 1, 2, 3, 4, 6, 7
UNMAP, RUN = 18, 19
OK, NO_VCPU, NOT_STOPPED, LIMIT = 0, 2, 4, 6
HLT: Final = 5
LEAVES: Final = 160
ENTRIES: Final = 120
HALF: Final = 2048
ABI: Final = 2
VERSION: Final = 2
MESSAGE: Final = struct.Struct("<II")


def install(directory: Path, behaviour: str) -> Path:
    """An executable in `directory` that is this engine with one behaviour."""
    path = directory / f"vmsession-{behaviour}"
    path.write_text(f"#!/bin/sh\nexec {sys.executable} -IS {__file__} {behaviour}\n")
    path.chmod(0o755)
    return path


class Engine:
    """Core's peer."""

    def __init__(self) -> None:
        self.channel = socket.socket(fileno=CHANNEL)

    def hello(self, abi: int = ABI) -> None:
        fields = (HELLO, 0, VERSION, abi, b"fake", 0, 64, 1_000_000, 40, 1, 1, 0x3E)
        self.channel.send(struct.pack("<IIII16sIIII2QQ", *fields))

    def respond(self, number: int, status: int = OK) -> None:
        self.channel.send(struct.pack("<IIII232s", RESPONSE, number, status, 0, b"as told"))

    def fail(self, why: bytes) -> None:
        self.channel.send(struct.pack("<IIII232s", FAILED, 0, 0, 0, why))

    def exit(self, *words: tuple[int, int], reason: int = HLT, tail: bytes = b"") -> None:
        """An exit of vCPU 0, with 32-bit words at offsets of the engine's half."""
        half = bytearray(HALF)
        for at, word in ((0x40, 1), (0x80, reason), *words):
            struct.pack_into("<I", half, at, word)
        self.channel.send(struct.pack("<IIII", EXIT, 0, 0, 0) + half + tail)

    def cpuid(self, number: int) -> None:
        """An empty table."""
        self.channel.send(struct.pack("<IIII", CPUID, number, 0, 0) + bytes(LEAVES * 32))

    def mappings(self, number: int, first: int, total: int, entries: int) -> None:
        """A part of a list, all zero."""
        head = struct.pack("<IIIIII", MAPPINGS, number, first, total, entries, 0)
        self.channel.send(head + bytes(ENTRIES * 48))

    def request(self) -> tuple[int, int]:
        """Type and number of the next one; ends the process with the channel."""
        packet, fds, _, _ = socket.recv_fds(self.channel, 1 << 16, 1)
        for fd in fds:
            os.close(fd)
        if not packet:
            raise SystemExit
        kind, number = MESSAGE.unpack_from(packet)
        return kind, number

    def serve(self, answer: Callable[[int, int], None]) -> None:
        while True:
            answer(*self.request())


def good(engine: Engine) -> None:
    """Says yes to everything."""
    engine.hello()
    engine.serve(lambda _, number: engine.respond(number))


def brief(engine: Engine) -> None:
    """Greets and ends."""
    engine.hello()


def old(engine: Engine) -> None:
    """Speaks another page ABI."""
    engine.hello(abi=77)
    engine.request()


def silent(engine: Engine) -> None:
    """Never answers."""
    engine.hello()
    engine.serve(lambda kind, number: None)


def deaf(engine: Engine) -> None:
    """Closes its channel and stays."""
    engine.hello()
    engine.channel.close()
    signal.pause()


def keeps(engine: Engine) -> None:
    """Refuses to unmap."""
    engine.hello()
    engine.serve(lambda kind, number: engine.respond(number, LIMIT if kind == UNMAP else OK))


def dies_unmapping(engine: Engine) -> None:
    """Ends when it should unmap."""
    engine.hello()

    def answer(kind: int, number: int) -> None:
        if kind == UNMAP:
            raise SystemExit
        engine.respond(number)

    engine.serve(answer)


def exits_late(engine: Engine) -> None:
    """Never greets, but exits."""
    engine.exit()
    engine.request()


def polite_twice(engine: Engine) -> None:
    """Greets twice."""
    engine.hello()
    engine.request()
    engine.hello()
    engine.request()


def stranger(engine: Engine) -> None:
    """Answers what nobody asked."""
    engine.hello()
    _, number = engine.request()
    engine.respond(number + 1)
    engine.request()


def floods(engine: Engine) -> None:
    """Sends exits that nobody ran for."""
    engine.hello()
    _, number = engine.request()
    engine.respond(number)
    for sequence in range(1, 1 << 20):
        engine.exit((0x40, sequence))


def floods_failures(engine: Engine) -> None:
    """Ends again and again."""
    engine.hello()
    engine.request()
    while True:
        engine.fail(b"")


def exits(engine: Engine, *words: tuple[int, int], reason: int = HLT, tail: bytes = b"") -> None:
    """Exits when it is run."""
    engine.hello()

    def answer(kind: int, number: int) -> None:
        engine.respond(number)
        if kind == RUN:
            engine.exit(*words, reason=reason, tail=tail)

    engine.serve(answer)


def impossible_exit(engine: Engine) -> None:
    """An exit that no message can tell."""
    exits(engine, reason=0xFFFFFFFF)


def unclaimed_exit(engine: Engine) -> None:
    """TPR, which stands not in its greeting."""
    exits(engine, reason=15)


def unclaimed_register(engine: Engine) -> None:
    """RCX, which stands not in its greeting."""
    exits(engine, (0x200, 0x2))


def unclaimed_fpu(engine: Engine) -> None:
    """FPU state from an engine that moves none."""
    exits(engine, (0x14, 512), (0x20C, 1), tail=bytes(4096))


def too_much_data(engine: Engine) -> None:
    """More than a page has room for."""
    exits(engine, (0x98, 8), (0x9C, 33), reason=2)


def cpuid_for_state(engine: Engine) -> None:
    """Answers another question."""
    engine.hello()
    engine.serve(lambda _, number: engine.cpuid(number))


def refuses_to_run(engine: Engine) -> None:
    """Refuses a run, and exits all the same."""
    engine.hello()

    def answer(kind: int, number: int) -> None:
        engine.respond(number, NOT_STOPPED if kind == RUN else OK)
        if kind == RUN:
            engine.exit()

    engine.serve(answer)


def lists(engine: Engine, total: int, entries: int, pause: float) -> None:
    """Lists so many mappings in such parts, each after so long."""
    engine.hello()
    listed = count(0, entries)

    def answer(_: int, number: int) -> None:
        select.select([], [], [], pause)
        engine.mappings(number, next(listed) % total, total, entries)

    engine.serve(answer)


def lists_without_end(engine: Engine) -> None:
    """More than core ever gave it."""
    lists(engine, 1 << 18, ENTRIES, 0)


def lists_in_crumbs(engine: Engine) -> None:
    """One by one."""
    lists(engine, ENTRIES, 1, 0)


def lists_slowly(engine: Engine) -> None:
    """Each part within the time for an answer."""
    lists(engine, 2 * ENTRIES, ENTRIES, 0.15)


def dawdles(engine: Engine) -> None:
    """Answers each request within the time for one."""
    engine.hello()

    def answer(_: int, number: int) -> None:
        select.select([], [], [], 0.12)
        engine.respond(number, NO_VCPU)

    engine.serve(answer)


def unknown_status(engine: Engine) -> None:
    """Answers with a status that does not exist."""
    engine.hello()
    engine.serve(lambda _, number: engine.respond(number, 99))


if __name__ == "__main__":
    globals()[sys.argv[1]](Engine())
