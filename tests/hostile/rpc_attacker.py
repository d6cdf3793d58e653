"""Clients that call every method with anything, many at once, and lose interest at random.

    python -m tests.hostile.rpc_attacker SOCKET UID SEED SECONDS NAME...

NAMEs are of objects of others. See `attackers.py`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from vmsession.v1 import audit_pb2, core_pb2, dataspace_pb2, vm_session_pb2

from core_service.refusal import CODES
from tests.hostile.attackers import WRITING_FAILED, Findings
from tests.hostile.messages import Forge
from tests.integration.refusals import error_info
from tests.integration.running_core import become_other_user

FILES: Final = (
    *(core_pb2, vm_session_pb2, dataspace_pb2, audit_pb2),
    *(health_pb2, reflection_pb2),
)
OURS: Final = "vmsession.v1."
AT_ONCE: Final = 48
CONNECTIONS: Final = 4
ANSWERS_READ: Final = 3
CANCELS: Final = 0.1
LEAVES: Final = 0.002
DEADLINES: Final = (0.001, 0.02, 0.2, 2.0, 2.0)
LOCAL: Final = {grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}
GRPC_SAYS: Final = (  # gRPC's own refusals, before a servicer sees the call
    "Received message larger than max",
    "Method not found",
)


class Attacker:
    """Owns connections, and what it found."""

    def __init__(self, socket: Path, chance: Random, names: list[str]) -> None:
        self.findings = Findings()
        self._chance = chance
        self._forge = Forge(chance, names)
        self._socket = socket
        self._channels = [self._connect() for _ in range(CONNECTIONS)]

    def _connect(self) -> grpc.aio.Channel:
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.insecure_channel(f"unix:{self._socket}", options)

    async def attack(self, seconds: float) -> None:
        """So long."""
        methods = list(attackable())
        end = time.monotonic() + seconds
        calls: set[asyncio.Task[None]] = set()
        while time.monotonic() < end:
            calls.add(asyncio.create_task(self._call(self._chance.choice(methods))))
            if len(calls) >= AT_ONCE:
                _, calls = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            if self._chance.random() < LEAVES:
                await self._leave_one()
        await asyncio.gather(*calls)

    async def _leave_one(self) -> None:
        """A connection ends in the midst of its calls."""
        number = self._chance.randrange(CONNECTIONS)
        left, self._channels[number] = self._channels[number], self._connect()
        await left.close(None)

    async def _call(self, method: MethodDescriptor) -> None:
        path = f"/{method.containing_service.full_name}/{method.name}"
        if self._chance.random() < 0.02:
            path += self._chance.choice(("x", "/", "?"))
        answers = 0
        try:
            async for raw in self._begin(method, path):
                self._learn(method, raw)
                answers += 1
                if answers == ANSWERS_READ:
                    break
            self.findings.outcomes["OK"] += 1
        except asyncio.CancelledError:
            self.findings.outcomes["CANCELLED"] += 1
        except grpc.aio.UsageError:  # its connection was closed
            self.findings.outcomes["left"] += 1
        except grpc.aio.AioRpcError as error:
            self.findings.outcomes[self._judge(path, error)] += 1

    async def _begin(self, method: MethodDescriptor, path: str) -> AsyncIterator[bytes]:
        """The call, which is cancelled when nobody reads on."""
        channel, chance = self._channels[self._chance.randrange(CONNECTIONS)], self._chance
        limit = chance.choice(DEADLINES)
        first = self._forge.wire(method.input_type)
        if method.client_streaming or chance.random() < 0.02:
            more = [self._forge.wire(method.input_type) for _ in range(chance.randint(0, 5))]
            call: Any = channel.stream_stream(path, None, None)(iter(more), timeout=limit)
        elif method.server_streaming:
            call = channel.unary_stream(path, None, None)(first, timeout=limit)
        else:
            unary = channel.unary_unary(path, None, None)(first, timeout=limit)
            if chance.random() < CANCELS:
                unary.cancel()
            yield await unary
            return
        try:
            async for answer in call:
                yield answer
        finally:
            call.cancel()

    def _learn(self, method: MethodDescriptor, raw: bytes) -> None:
        answer = GetMessageClass(method.output_type)()
        with suppress(DecodeError):
            answer.ParseFromString(raw)
            self._forge.learn(answer)

    def _judge(self, method: str, error: grpc.aio.AioRpcError) -> str:
        """The reason of a refusal; what is none is wrong."""
        code, text = error.code(), error.details() or ""
        if code in LOCAL or text == WRITING_FAILED:
            return str(code.name)
        if text.startswith(GRPC_SAYS):
            return f"gRPC: {code.name}"
        try:
            reason = error_info(error).reason
        except AssertionError:
            reason = ""
        if not method.startswith(f"/{OURS}"):  # gRPC's own services
            if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
                self.findings.wrong.append(f"{method}: {code.name} {text[:300]}")
            return f"gRPC: {code.name}"
        if reason not in CODES or reason == "INTERNAL" or "Unexpected <" in text:
            self.findings.wrong.append(f"{method}: {code.name} {text[:300]}")
        return reason or code.name


def attackable() -> Iterator[MethodDescriptor]:
    """Every method of every service; Drain only for those who may not: it would be obeyed."""
    for file in FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                if method.name != "Drain" or os.geteuid() != 0:
                    yield method


async def attack(socket: Path, seed: str, seconds: float, names: list[str]) -> Findings:
    """As one client, who leaves with everything."""
    attacker = Attacker(socket, Random(seed), names)
    await attacker.attack(seconds)
    return attacker.findings


def main() -> None:
    """The process itself."""
    socket, uid, seed, seconds, *names = sys.argv[1:]
    become_other_user(int(uid))
    asyncio.run(attack(Path(socket), seed, float(seconds), names)).tell()


if __name__ == "__main__":
    main()
