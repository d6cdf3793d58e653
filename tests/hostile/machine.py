"""A virtual machine of an attacker, by stubs alone, and the channel on which core gives it fds."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final

from vmsession.v1 import core_pb2, dataspace_pb2, vcpu_pb2, vm_session_pb2

from dataspace.vcpu_page import ABI
from tests.integration.running_core import Stubs

PATIENCE: Final = 20.0
RAM: Final = 0x10000
PACKET: Final = 300
CODE: Final = vcpu_pb2.Segment(selector=0, base=0, limit=0xFFFF, attributes=0x9B)
DEVICES: Final = vcpu_pb2.Segment(selector=0xF000, base=0xF0000, limit=0xFFFF, attributes=0x93)
ORIGIN: Final = 0x1000
STACK: Final = 0x8000


class FdChannel:
    """The lease of this process, and its fds."""

    def __init__(self, stubs: Stubs, core: Path) -> None:
        ticket = stubs.core.OpenFdChannel(core_pb2.OpenFdChannelRequest(), timeout=PATIENCE).ticket
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(os.fspath(core.with_name("fds.sock")))
        self.socket.send(ticket.encode())
        answer = self.socket.recv(PACKET)
        assert answer == b"ok", answer

    def collect(self, name: str) -> int | None:
        """An fd; None if core refused it."""
        self.socket.send(name.encode())
        _, fds, _, _ = socket.recv_fds(self.socket, PACKET, 1)
        return fds[0] if fds else None

    def close(self) -> None:
        """The lease ends."""
        self.socket.close()


class Machine:
    """A session with RAM at 0 and guest code at ORIGIN."""

    def __init__(self, stubs: Stubs, engine: str, guest: bytes, size: int = RAM) -> None:
        self.stubs = stubs
        self.session = stubs.vm.CreateSession(
            vm_session_pb2.CreateSessionRequest(engine=engine, label="hostile"), timeout=PATIENCE
        ).session.name
        self.memory = stubs.dataspaces.CreateDataspace(
            dataspace_pb2.CreateDataspaceRequest(size=size), timeout=PATIENCE
        ).dataspace.name
        stubs.dataspaces.WriteDataspace(
            dataspace_pb2.WriteDataspaceRequest(name=self.memory, offset=ORIGIN, data=guest),
            timeout=PATIENCE,
        )
        stubs.vm.Attach(
            vm_session_pb2.AttachRequest(session=self.session, dataspace=self.memory),
            timeout=PATIENCE,
        )
        self.vcpus: list[str] = []

    def add_vcpu(self) -> str:
        """With a page."""
        request = vm_session_pb2.CreateVcpuRequest(
            session=self.session,
            index=len(self.vcpus),
            transport=vm_session_pb2.TRANSPORT_PAGE,
            page_abi=ABI,
        )
        self.vcpus.append(self.stubs.vm.CreateVcpu(request, timeout=PATIENCE).vcpu.name)
        return self.vcpus[-1]

    def begin(self, vcpu: str) -> None:
        """Have it stand at the guest's first instruction, in real mode, DS where no memory is."""
        state = vcpu_pb2.VcpuState(rip=ORIGIN, rsp=STACK, cs=CODE, ds=DEVICES)
        self.stubs.vm.UpdateVcpuState(
            vm_session_pb2.UpdateVcpuStateRequest(vcpu=vcpu, state=state), timeout=PATIENCE
        )

    def end(self) -> None:
        """Session and memory."""
        self.stubs.vm.DeleteSession(
            vm_session_pb2.DeleteSessionRequest(name=self.session), timeout=PATIENCE
        )
        self.free()

    def free(self) -> None:
        """The memory."""
        self.stubs.dataspaces.FreeDataspace(
            dataspace_pb2.FreeDataspaceRequest(name=self.memory), timeout=PATIENCE
        )
