"""A client of engines that are core's enemies: it does with each what a VMM does, several at once, and
loses its patience at random.

    python -m tests.hostile.engine_user SOCKET UID SEED SECONDS ENGINE

See `attackers.py`. Every call must be answered in time, with an outcome or a refusal.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any, Final

import grpc
import grpc.aio
from vmsession.v1 import (
    core_pb2,
    core_pb2_grpc,
    dataspace_pb2,
    dataspace_pb2_grpc,
    vcpu_pb2,
    vm_session_pb2,
    vm_session_pb2_grpc,
)

from core_service.refusal import CODES
from dataspace.vcpu_page import ABI
from tests.hostile.attackers import WRITING_FAILED, Findings
from tests.integration.refusals import reason_of
from tests.integration.running_core import become_other_user

AT_ONCE: Final = 6
CALLS: Final = 25  # of a machine's life
IN_TIME: Final = 25.0  # what an engine has to answer, to end, and some
DEADLINES: Final = (0.01, 0.3, None, None, None)
MEMORY: Final = 1 << 16
LOCAL: Final = {grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}


class User:
    """Owns a connection, and what it found."""

    def __init__(self, core: Path, chance: Random, engine: str) -> None:
        self.findings = Findings()
        self.worst = 0.0
        self._chance = chance
        self._engine = engine
        self._channel = grpc.aio.insecure_channel(f"unix:{core}")
        self._core = core_pb2_grpc.CoreServiceStub(self._channel)
        self._vm = vm_session_pb2_grpc.VmSessionServiceStub(self._channel)
        self._dataspaces = dataspace_pb2_grpc.DataspaceServiceStub(self._channel)

    async def use(self, seconds: float) -> None:
        """So long, and to the end of what began then."""
        lease = self._core.KeepAlive(core_pb2.KeepAliveRequest())
        await lease.read()
        end = time.monotonic() + seconds
        await asyncio.gather(*(self._lives(end) for _ in range(AT_ONCE)))
        lease.cancel()
        await self._channel.close(None)

    async def _lives(self, end: float) -> None:
        while time.monotonic() < end:
            await self._life()

    async def _life(self) -> None:
        session = await self._made_session()
        if session is None:
            return
        self.findings.outcomes["machines"] += 1
        size = dataspace_pb2.CreateDataspaceRequest(size=MEMORY)
        made = await self._call(self._dataspaces.CreateDataspace, size, None)
        memory = made.dataspace.name if made else ""
        for _ in range(self._chance.randint(1, CALLS)):
            await self._do_something(session, memory)
        if self._chance.random() < 0.5:
            await self._call(
                self._dataspaces.FreeDataspace,
                dataspace_pb2.FreeDataspaceRequest(name=memory),
                None,
            )
        delete = vm_session_pb2.DeleteSessionRequest(name=session)
        await self._call(self._vm.DeleteSession, delete, None)
        free = dataspace_pb2.FreeDataspaceRequest(name=memory)
        await self._call(self._dataspaces.FreeDataspace, free, None)

    async def _made_session(self) -> str | None:
        request = vm_session_pb2.CreateSessionRequest(engine=self._engine)
        made = await self._call(self._vm.CreateSession, request, None)
        return made.session.name if made else None

    async def _do_something(self, session: str, memory: str) -> None:
        vm, pb, chance = self._vm, vm_session_pb2, self._chance
        vcpu = f"{session}/vcpus/{chance.choice((0, 0, 1))}"
        gpa = chance.randrange(16) << 12
        paged = chance.random() < 0.5
        transport = pb.TRANSPORT_PAGE if paged else pb.TRANSPORT_STREAM
        index = int(vcpu[-1])
        create = pb.CreateVcpuRequest(
            session=session, index=index, transport=transport, page_abi=ABI * paged
        )
        attach = pb.AttachRequest(session=session, dataspace=memory, gpa=gpa, offset=gpa, size=4096)
        state = vcpu_pb2.VcpuState(rip=0x1000)
        write = dataspace_pb2.WriteDataspaceRequest(name=memory, offset=gpa, data=b"x" * 64)
        calls: tuple[tuple[Any, Any], ...] = (
            (vm.CreateVcpu, create),
            (vm.CreateVcpu, create),
            (vm.Attach, attach),
            (vm.Attach, attach),
            (vm.Detach, pb.DetachRequest(session=session, gpa=gpa, size=4096)),
            (vm.Run, pb.RunRequest(vcpu=vcpu)),
            (vm.Run, pb.RunRequest(vcpu=vcpu, reply=vcpu_pb2.Reply(state=state))),
            (vm.Pause, pb.PauseRequest(vcpu=vcpu)),
            (vm.RequestWindow, pb.RequestWindowRequest(vcpu=vcpu)),
            (vm.GetVcpuState, pb.GetVcpuStateRequest(vcpu=vcpu)),
            (vm.UpdateVcpuState, pb.UpdateVcpuStateRequest(vcpu=vcpu, state=state)),
            (vm.GetVcpuCpuid, pb.GetVcpuCpuidRequest(vcpu=vcpu)),
            (vm.ListVcpus, pb.ListVcpusRequest(session=session)),
            (self._dataspaces.WriteDataspace, write),
        )
        if chance.random() < 0.2:
            await self._serve_exits(vcpu)
        else:
            await self._call(*chance.choice(calls), chance.choice(DEADLINES))

    async def _call(self, call: Any, request: Any, deadline: float | None) -> Any:
        """The answer, if there was one."""
        began = time.monotonic()
        outcome = "OK"
        try:
            return await call(request, timeout=deadline or 2 * IN_TIME)
        except grpc.aio.AioRpcError as error:
            outcome = self._judged(error, hurried=deadline is not None)
            return None
        finally:
            took = time.monotonic() - began
            self.worst = max(self.worst, took)
            self.findings.outcomes[outcome] += 1
            if took > IN_TIME:
                self.findings.wrong.append(f"{type(request).__name__} took {took:.1f} s: {outcome}")

    async def _serve_exits(self, vcpu: str) -> None:
        """For a moment, with whatever replies."""

        async def replies() -> AsyncIterator[vm_session_pb2.HandleExitsRequest]:
            yield vm_session_pb2.HandleExitsRequest(open=vcpu)
            for _ in range(8):
                yield vm_session_pb2.HandleExitsRequest(reply=vcpu_pb2.Reply())
                await asyncio.sleep(0.02)

        call = self._vm.HandleExits(replies(), timeout=self._chance.choice((0.05, 0.5)))
        try:
            async for _ in call:
                self.findings.outcomes["exits"] += 1
        except grpc.aio.AioRpcError as error:
            self.findings.outcomes[self._judged(error, hurried=True)] += 1

    def _judged(self, error: grpc.aio.AioRpcError, *, hurried: bool) -> str:
        """The reason of a refusal; what is none is wrong."""
        if error.details() == WRITING_FAILED or (hurried and error.code() in LOCAL):
            return str(error.code().name)
        try:
            reason = reason_of(error)
        except AssertionError:
            reason = ""
        if reason not in CODES or reason == "INTERNAL":
            self.findings.wrong.append(f"{error.code().name} {error.details()}")
        return reason or str(error.code().name)


async def use(core: Path, seed: str, seconds: float, engine: str) -> Findings:
    """As one client."""
    user = User(core, Random(seed), engine)
    await user.use(seconds)
    user.findings.outcomes[f"{seed}: longest call, milliseconds"] = round(user.worst * 1000)
    return user.findings


def main() -> None:
    """The process itself."""
    socket, uid, seed, seconds, engine = sys.argv[1:]
    become_other_user(int(uid))
    asyncio.run(use(Path(socket), seed, float(seconds), engine)).tell()


if __name__ == "__main__":
    main()
