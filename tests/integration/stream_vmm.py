"""A VMM made of generated stubs only: what any language that speaks gRPC can write."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence

import grpc
from vmsession.v1 import dataspace_pb2, vcpu_pb2, vm_session_pb2

from tests.integration.running_core import Stubs, cancel

REAL_MODE_CODE = vcpu_pb2.Segment(selector=0, base=0, limit=0xFFFF, attributes=0x9B)
ORIGIN = 0x1000


class Stream:
    """One HandleExits call."""

    def __init__(self, stubs: Stubs, vcpu: str) -> None:
        self._requests: queue.Queue[vm_session_pb2.HandleExitsRequest | None] = queue.Queue()
        self._responses = stubs.vm.HandleExits(self._outgoing(), timeout=20)
        self._requests.put(vm_session_pb2.HandleExitsRequest(open=vcpu))

    def _outgoing(self) -> Iterator[vm_session_pb2.HandleExitsRequest]:
        while (request := self._requests.get()) is not None:
            yield request

    def reply(self, reply: vcpu_pb2.Reply) -> None:
        """Run the vCPU."""
        self._requests.put(vm_session_pb2.HandleExitsRequest(reply=reply))

    def next(self) -> vcpu_pb2.Exit:
        """The next exit."""
        response: vm_session_pb2.HandleExitsResponse = next(iter(self._responses))
        return response.exit

    def cancel(self) -> None:
        """End it as a client does that is not interested any more."""
        cancel(self._responses)
        self._requests.put(None)

    def end(self) -> grpc.StatusCode:
        """Close our side; the status that the stream ends with."""
        self._requests.put(None)
        try:
            for _ in self._responses:
                pass
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK


class StreamVmm:
    """One session with 64 KiB at address 0, a guest at 0x1000, and one vCPU on a HandleExits stream."""

    def __init__(self, stubs: Stubs, engine: str, guest: bytes) -> None:
        self.stubs = stubs
        self.session = stubs.vm.CreateSession(
            vm_session_pb2.CreateSessionRequest(engine=engine, label="stream")
        ).session.name
        self.dataspace = stubs.dataspaces.CreateDataspace(
            dataspace_pb2.CreateDataspaceRequest(size=0x10000)
        ).dataspace.name
        self.write(ORIGIN, guest)
        stubs.vm.Attach(
            vm_session_pb2.AttachRequest(session=self.session, dataspace=self.dataspace, gpa=0)
        )
        self.vcpu = stubs.vm.CreateVcpu(
            vm_session_pb2.CreateVcpuRequest(
                session=self.session, transport=vm_session_pb2.TRANSPORT_STREAM
            )
        ).vcpu.name
        self.stream = Stream(stubs, self.vcpu)

    def write(self, offset: int, data: bytes) -> None:
        """Write guest memory through core."""
        self.stubs.dataspaces.WriteDataspace(
            dataspace_pb2.WriteDataspaceRequest(name=self.dataspace, offset=offset, data=data)
        )

    def reply(self, reply: vcpu_pb2.Reply) -> None:
        """Run the vCPU."""
        self.stream.reply(reply)

    def next(self) -> vcpu_pb2.Exit:
        """The next exit."""
        return self.stream.next()

    def start(self, wanted: Sequence[str] = ()) -> None:
        """From STARTUP into the guest, in real mode; `wanted` are registers to see at its exits."""
        self.reply(vcpu_pb2.Reply())
        startup = self.next()
        assert startup.reason == vcpu_pb2.EXIT_REASON_STARTUP
        assert startup.sequence == 1
        registers = vcpu_pb2.VcpuState(rip=ORIGIN, cs=REAL_MODE_CODE)
        self.reply(vcpu_pb2.Reply(sequence=startup.sequence, state=registers, wanted=wanted))

    def end_stream(self) -> grpc.StatusCode:
        """Close our side; the status that the stream ends with."""
        return self.stream.end()
