"""The connection of one VMM process to core."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from vmsession.v1.core_pb2 import (
    Engine,
    GetInfoRequest,
    GetInfoResponse,
    ListEnginesRequest,
    OpenFdChannelRequest,
)
from vmsession.v1.core_pb2_grpc import CoreServiceStub
from vmsession.v1.dataspace_pb2 import (
    AcceptShareRequest,
    CreateDataspaceRequest,
    CreateRomRequest,
    ListSharesRequest,
)
from vmsession.v1.dataspace_pb2_grpc import DataspaceServiceStub
from vmsession.v1.vm_session_pb2 import CreateSessionRequest, ListSessionsRequest, ListVcpusRequest
from vmsession.v1.vm_session_pb2 import Session as SessionRecord
from vmsession.v1.vm_session_pb2 import Vcpu as VcpuRecord
from vmsession.v1.vm_session_pb2_grpc import VmSessionServiceStub

from dataspace.vcpu_page import ABI
from vmm_client.audit import PAGE_ENTRIES, AuditReader
from vmm_client.core_socket import check_reachable, socket_path
from vmm_client.errors import IncompatibleCore
from vmm_client.fd_channel import FdChannel
from vmm_client.ram import Ram
from vmm_client.rpc import Rpc
from vmm_client.session import Session
from vmm_client.share import Share

T = TypeVar("T", Session, Ram)

GREETING_SECONDS = 5.0
ENGINES_SECONDS = 60.0  # core starts each engine once to answer


class Connection(AuditReader):
    """Owns the RPC channel, the fd channel (which is the lease), and all that is created with it.

    A context manager; `close` ends every session and frees all memory. Any thread.
    """

    def __init__(self, path: str) -> None:
        """Connect. Raises CoreUnavailable, IncompatibleCore, Refused."""
        self.path = str(Path(path).absolute())
        check_reachable(self.path)
        super().__init__(Rpc(self.path))
        self._core = CoreServiceStub(self.rpc.channel)
        try:
            self.info = self._greet()
            self.fd_channel = self._lease()
            self.rpc.lease_holds = lambda: not self.fd_channel.hung_up()
        except BaseException:
            self.rpc.close()
            raise
        self.vm_sessions = VmSessionServiceStub(self.rpc.channel)
        self.dataspaces = DataspaceServiceStub(self.rpc.channel)
        self._lock = threading.Lock()
        self._open: list[Session | Ram] = []

    def engines(self) -> list[Engine]:
        """The engines that core knows, best first; see `Engine` in core.proto.

        Core starts each one once to answer: tens of milliseconds.
        """
        answer = self.rpc.call(self._core.ListEngines, ListEnginesRequest(), ENGINES_SECONDS)
        return list(answer.engines)

    @property
    def draining(self) -> bool:
        """Whether core takes no new sessions any more, and ends soon. Asks core."""
        return self._greet().draining

    def create_session(
        self,
        engine: str = "",
        label: str = "",
        *,
        priority: int | None = None,
        affinity: Iterable[int] = (),
    ) -> Session:
        """A new virtual machine; `engine` is a name of `engines()`, empty for the first available.

        `label` is for people, at most 64 printable characters. `priority` is that of nice(1), 0 to 19,
        by default the most urgent that policy allows; `affinity` has the numbers of the CPUs to keep
        to, by default all that policy allows. The caller closes the session.
        Raises Refused: see CreateSession in vm_session.proto; ValueError for numbers that are no
        unsigned 32-bit ones.
        """
        request = CreateSessionRequest(
            engine=engine, label=label, priority=priority, affinity=affinity
        )
        answer = self.rpc.call(self.vm_sessions.CreateSession, request)
        return self._opened(Session(self, answer.session, answer.capabilities))

    def create_ram(self, size: int) -> Ram:
        """Zeroed memory of `size` bytes, rounded up to whole pages; the caller closes it.

        Raises Refused: see CreateDataspace in dataspace.proto; ValueError for a size that is no
        unsigned 64-bit number.
        """
        request = CreateDataspaceRequest(size=size)
        answer = self.rpc.call(self.dataspaces.CreateDataspace, request)
        return self._opened(Ram(self, answer.dataspace))

    def create_rom(self, path: str | Path) -> Ram:
        """A read-only copy of a file as core sees it, rounded up to whole pages; the caller closes it.

        Core's policy tells which files: `rom_paths`. Raises Refused: see CreateRom in
        dataspace.proto.
        """
        request = CreateRomRequest(path=str(path))
        answer = self.rpc.call(self.dataspaces.CreateRom, request)
        return self._opened(Ram(self, answer.dataspace))

    def accept(self, share: Share | str) -> Ram:
        """The memory of an offer, or of the offer with this name; the caller closes it, which ends this
        part only. Its owner can take it back at any time: then guests find nothing there.

        Raises Refused: see AcceptShare in dataspace.proto.
        """
        request = AcceptShareRequest(share=share if isinstance(share, str) else share.name)
        answer = self.rpc.call(self.dataspaces.AcceptShare, request)
        return self._opened(Ram(self, answer.dataspace))

    def shares(self) -> Iterator[Share]:
        """The offers made by this client, and those made to it, in the order of their making."""
        request = ListSharesRequest(page_size=PAGE_ENTRIES)
        while True:
            page = self.rpc.call(self.dataspaces.ListShares, request)
            yield from (Share(self, record) for record in page.shares)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def sessions(self) -> Iterator[SessionRecord]:
        """The sessions of this client, or of all for core's own user, in the order of creation."""
        request = ListSessionsRequest(page_size=PAGE_ENTRIES)
        while True:
            page = self.rpc.call(self.vm_sessions.ListSessions, request)
            yield from page.sessions
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def vcpus(self, session: str) -> list[VcpuRecord]:
        """The vCPUs of a session of `sessions()`, with their exits and CPU time so far. Raises Refused:
        NOT_FOUND when it ended meanwhile.
        """
        request = ListVcpusRequest(session=session)
        return list(self.rpc.call(self.vm_sessions.ListVcpus, request).vcpus)

    def forget(self, resource: Session | Ram) -> None:
        """A session or memory is closed: no need to close it with the connection."""
        with self._lock:
            if resource in self._open:
                self._open.remove(resource)

    def close(self) -> None:
        """Close what is open, the last created first, and give up the lease. Again: nothing."""
        with self._lock:
            resources, self._open = self._open, []
        try:
            for resource in reversed(resources):
                resource.close()
        finally:
            self.fd_channel.close()
            self.rpc.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _greet(self) -> GetInfoResponse:
        info = self.rpc.call(self._core.GetInfo, GetInfoRequest(), GREETING_SECONDS)
        if info.page_abi != ABI:
            raise IncompatibleCore("the vCPU page of this core", info.page_abi, ABI)
        return info

    def _lease(self) -> FdChannel:
        ticket = self.rpc.call(self._core.OpenFdChannel, OpenFdChannelRequest())
        return FdChannel(ticket.path, ticket.ticket)

    def _opened(self, resource: T) -> T:
        with self._lock:
            self._open.append(resource)
        return resource


def connect(path: str | None = None) -> Connection:
    """Connect to the core that listens at `path`, by default at `socket_path()`.

    Raises CoreUnavailable, IncompatibleCore, Refused.
    """
    return Connection(path or socket_path())
