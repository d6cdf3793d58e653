"""Core gone mad: packets of any type and content, with fds of any kind, to an engine with guests."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
from collections import Counter
from random import Random
from typing import Final

from core_service.engine import protocol
from core_service.engine.protocol import Status, Transport, Type
from dataspace.vcpu_page import (
    ALL_SCALARS,
    ALL_SEGMENTS,
    FPU_BYTES,
    HALF_BYTES,
    PAGE_BYTES,
    VmmHalf,
)
from tests.engine.harness import RAM, Engine, Vcpu, load, memory, take_over
from tests.hostile.budget import Budget
from tests.hostile.messages import EDGES

BURST: Final = 12
REQUESTS: Final = tuple(kind for kind in Type if kind >= Type.CREATE_VCPU)
PAYLOADS: Final = (Type.RUN, Type.GET_STATE, Type.SET_STATE)
RANGES: Final = (Type.MAP, Type.UNMAP, Type.WRITTEN)
SIZES: Final = (0, 4096, PAGE_BYTES, RAM, 1 << 30, 1 << 45)
GUEST: Final = "1: in al, 0x60; out 0x80, al; mov eax, [0x100000]; inc dword ptr [0x2000]; jmp 1b"


class Attacker:
    """Owns nothing but what it found: how many packets got which answer."""

    def __init__(self, engine: Engine, chance: Random) -> None:
        self.outcomes: Counter[str] = Counter()
        self._engine = engine
        self._chance = chance
        self._number = 0

    def attack(self, budget: Budget) -> None:
        """An engine that has said hello. It answers each packet once, and at the end it obeys."""
        fd = memory(RAM)
        self._engine.map(0, fd, RAM)
        with mmap.mmap(fd, RAM) as view:
            load(view, GUEST)
        os.close(fd)
        vcpus = [Vcpu(self._engine, Transport.PAGE, 0)]
        if self._engine.offer.max_vcpus > 1:
            vcpus.append(Vcpu(self._engine, Transport.STREAM, 1))
        while budget.left > 0:
            self._burst()
        for vcpu in vcpus:
            take_over(self._engine, vcpu.index)
            vcpu.close()

    def _burst(self) -> None:
        sent = [self._send() for _ in range(self._chance.randint(1, BURST))]
        for number in sent:
            answer = self._engine.answer()
            kind, answered = protocol.header(answer)
            assert answered == number
            self.outcomes[_outcome(Type(kind), answer)] += 1
        self._engine.exits.clear()

    def _send(self) -> int:
        """One packet; the number that its answer must have."""
        chance = self._chance
        self._number += 1
        packet = self._packet(chance.choice(REQUESTS))
        if chance.random() < 0.2:
            packet = self._spoiled(packet)
        wanted = chance.random() < 0.7 and packet[:1] in (b"\x10", b"\x11")
        count = 1 if wanted else chance.choice((0, 0, 0, 0, 0, 0, 1, 2, 5))
        fds = [self._fd() for _ in range(count)]
        try:
            socket.send_fds(self._engine.channel, [packet], fds)
        finally:
            for fd in fds:
                os.close(fd)
        return protocol.header(packet)[1] if len(packet) >= protocol.HEADER.size else 0

    def _packet(self, kind: Type) -> bytes:
        chance, number = self._chance, self._number
        index = chance.choice((0, 0, 1, 1, 2, 63, 64, self._value() & 0xFFFFFFFF))
        if kind in PAYLOADS:
            return self._run(kind, index)
        if kind in RANGES:
            gpa, size, offset = (self._value() & ~chance.choice((0, 4095)) for _ in range(3))
            if chance.random() < 0.5:
                gpa, size, offset = chance.randrange(64) << 12, chance.choice((0x1000, 0x3000)), 0
            return protocol.range_packet(
                kind, number, gpa, size, offset, chance.choice((0, 1, 3, 3, 7))
            )
        if kind == Type.SET_CPUID:
            leaves = chance.choice((0, 1, 160, 161, self._value() & 0xFFFFFFFF))
            table = chance.randbytes(160 * 32) if chance.random() < 0.5 else bytes(160 * 32)
            return protocol.CPUID.pack(kind, number, index, leaves, table)
        if kind == Type.SET_MSR_FILTER:
            ranges = b"".join(
                protocol.RANGE_OF_MSRS.pack(*(self._value() & 0xFFFFFFFF for _ in range(4)))
                for _ in range(16)
            )
            return protocol.MSR_FILTER.pack(kind, number, chance.choice((0, 1, 16, 17)), 0, ranges)
        return protocol.VCPU.pack(kind, number, index, chance.choice((0, 1, 1, 2, 0xFFFFFFFF)))

    def _run(self, kind: Type, index: int) -> bytes:
        """With a reply that may be taken, or that is anything."""
        chance = self._chance
        half = VmmHalf(bytearray(HALF_BYTES))
        if chance.random() < 0.2:
            half.u8[:] = chance.randbytes(HALF_BYTES)
        half.want(ALL_SCALARS & chance.getrandbits(64), ALL_SEGMENTS)
        for at in chance.sample(range(0x40 // 8, HALF_BYTES // 8), chance.choice((0, 0, 1, 5))):
            half.u64[at] = self._value()
        area = chance.choice((b"", b"", chance.randbytes(FPU_BYTES), bytes(8)))
        return protocol.run_packet(kind, self._number, index, 0, bytes(half.u8), area)

    def _value(self) -> int:
        return self._chance.choice((*EDGES, self._chance.getrandbits(64)))

    def _spoiled(self, packet: bytes) -> bytes:
        chance = self._chance
        spoiled = bytearray(packet)
        for _ in range(chance.randint(0, 4)):
            spoiled[chance.randrange(len(spoiled))] = chance.getrandbits(8)
        cut = chance.choice((len(spoiled), len(spoiled), chance.randrange(1, len(spoiled) + 1)))
        return bytes(spoiled[:cut]) + chance.randbytes(chance.choice((0, 0, 1, 8, 20_000)))

    def _fd(self) -> int:
        """Mostly memory, sealed or not."""
        chance = self._chance
        pick = chance.random()
        if pick < 0.8:
            return memory(chance.choice(SIZES), seals=chance.choice((fcntl.F_SEAL_SHRINK, 0)))
        if pick < 0.9:
            return os.open(chance.choice(("/dev/null", "/dev/zero", "/")), os.O_RDONLY)
        return os.eventfd(0) if pick < 0.95 else os.dup(self._engine.channel.fileno())


def _outcome(kind: Type, answer: bytes) -> str:
    """A name for an answer, which must be one."""
    if kind == Type.RESPONSE:
        return Status(protocol.parse_response(answer).status).name
    parse = {
        Type.STATE: protocol.parse_exit,
        Type.CPUID: protocol.parse_cpuid,
        Type.MAPPINGS: protocol.parse_mappings,
    }
    parse[kind](answer)
    return kind.name
