"""A virtual machine: vCPUs and guest-physical memory, executed by one engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from vmsession.v1.core_pb2 import Capabilities
from vmsession.v1.vm_session_pb2 import (
    TRANSPORT_PAGE,
    TRANSPORT_STREAM,
    AttachRequest,
    CreateVcpuRequest,
    DeleteSessionRequest,
    DetachRequest,
    GetSessionRequest,
    GetVcpuCpuidRequest,
    SetMsrFilterRequest,
    SetVcpuCpuidRequest,
    UpgradeQuotaRequest,
    UpgradeQuotaResponse,
)
from vmsession.v1.vm_session_pb2 import Attachment as AttachmentRecord
from vmsession.v1.vm_session_pb2 import Session as SessionRecord

from dataspace.address_map import Attachment
from dataspace.vcpu_page import ABI
from vmm_client.cpuid import CpuidLeaf
from vmm_client.engine_side import EngineSide
from vmm_client.errors import Closed, CoreUnavailable, Refused, SessionEnded, Unsupported
from vmm_client.memory import GuestMemory
from vmm_client.msr import MsrRange
from vmm_client.page import Page
from vmm_client.ram import Ram
from vmm_client.relay import Relay, StreamPage
from vmm_client.vcpu import Vcpu
from vmm_client.written import WrittenLog

if TYPE_CHECKING:
    from vmm_client.connection import Connection

CHECK_EVERY_SECONDS: Final = 0.4
CHECK_SECONDS: Final = 2.0
GONE: Final = ("NOT_FOUND", "ENGINE_DIED")


class Session:
    """Made by `Connection.create_session`. Owns its vCPUs, and the session in core, until `close`;
    a context manager. Any thread.

    `capabilities` is what its engine can do: `Capabilities` in core.proto. `memory` reads and
    writes by guest-physical address.
    """

    def __init__(
        self, connection: Connection, record: SessionRecord, capabilities: Capabilities
    ) -> None:
        self.name = record.name
        self.label = record.label
        self.engine = record.engine
        self.capabilities = capabilities
        self._has = frozenset(
            (*capabilities.features, *capabilities.exit_reasons, *capabilities.registers)
        )
        self.memory = GuestMemory()
        self._connection = connection
        self._stub = connection.vm_sessions
        self._lock = threading.Lock()
        self._vcpus: list[Vcpu] = []
        self._relays: list[Relay] = []
        self._closed = False
        self._checked = time.monotonic()

    @property
    def written_log(self) -> WrittenLog:
        """What was written into guest memory; every vCPU of the session tells its engine."""
        return self.memory.log

    def attach(
        self, ram: Ram, gpa: int, offset: int = 0, size: int = 0, read_only: bool = False
    ) -> Attachment:
        """Map `ram`, or `size` bytes of it from `offset`, at `gpa`; size 0 is the rest of it.

        All are multiples of 4096. The guest may write unless `read_only`. The identical attachment
        again is success. Raises Refused: see Attach in vm_session.proto.
        """
        request = AttachRequest(
            session=self.name,
            dataspace=ram.name,
            gpa=gpa,
            offset=offset,
            size=size,
            read_only=read_only,
        )
        with self._lock:
            record = self._connection.rpc.call(self._stub.Attach, request).attachment
            attachment = self.memory.attach(ram, _attachment(record))
            ram.attached_to(self)
        return attachment

    def detach(self, gpa: int, size: int) -> list[Attachment]:
        """Unmap exactly this range, whatever is attached there; returns what was, piece by piece.

        Raises Refused: see Detach in vm_session.proto.
        """
        request = DetachRequest(session=self.name, gpa=gpa, size=size)
        with self._lock:
            records = self._connection.rpc.call(self._stub.Detach, request).detached
            self.memory.detach(gpa, size)
        return [_attachment(record) for record in records]

    def upgrade(self, ram: int = 0, capabilities: int = 0) -> UpgradeQuotaResponse:
        """Move quota from this client to the session, such as a capability for each attachment; the
        answer is what it has then. Raises Refused: see UpgradeQuota in vm_session.proto.
        """
        request = UpgradeQuotaRequest(session=self.name, ram=ram, capabilities=capabilities)
        return self._connection.rpc.call(self._stub.UpgradeQuota, request)

    def create_vcpu(self, index: int = 0, *, stream: bool = False) -> Vcpu:
        """A new vCPU, below `capabilities.max_vcpus`. It runs when it is served.

        Its exits come by shared memory; with `stream` through core, a millisecond each, without any.
        Raises Refused: see CreateVcpu in vm_session.proto; IncompatibleCore, BadFd.
        """
        transport = TRANSPORT_STREAM if stream else TRANSPORT_PAGE
        request = CreateVcpuRequest(
            session=self.name, index=index, transport=transport, page_abi=ABI
        )
        name = self._connection.rpc.call(self._stub.CreateVcpu, request).vcpu.name
        vcpu = Vcpu(
            name, self._stream_page(name, index) if stream else self._shared_page(name), self
        )
        with self._lock:
            if self._closed:
                vcpu.close()
                raise Closed(self.name)
            self._vcpus.append(vcpu)
        return vcpu

    def _shared_page(self, vcpu: str) -> Page:
        return Page.from_fd(self._connection.fd_channel.collect(vcpu), vcpu)

    def _stream_page(self, vcpu: str, index: int) -> Page:
        side = EngineSide(index, self.capabilities.tsc_khz)
        relay = Relay(vcpu, side, self._connection.rpc, self._stub)
        relay.start()
        self._relays.append(relay)
        return StreamPage(relay, side)

    def set_msr_filter(self, ranges: Iterable[MsrRange]) -> None:
        """Have accesses to these MSRs exit, also where the engine keeps them; they take the place of
        those named before. Raises Refused: see SetMsrFilter in vm_session.proto."""
        request = SetMsrFilterRequest(session=self.name, ranges=[each.message for each in ranges])
        self._connection.rpc.call(self._stub.SetMsrFilter, request)

    def cpuid(self, vcpu: str) -> list[CpuidLeaf]:
        """`Vcpu.cpuid` of the vCPU with this name."""
        request = GetVcpuCpuidRequest(vcpu=vcpu)
        leaves = self._connection.rpc.call(self._stub.GetVcpuCpuid, request).leaves
        return [CpuidLeaf.of(leaf) for leaf in leaves]

    def set_cpuid(self, vcpu: str, leaves: Iterable[CpuidLeaf]) -> None:
        """`Vcpu.set_cpuid` of the vCPU with this name."""
        request = SetVcpuCpuidRequest(vcpu=vcpu, leaves=[leaf.message for leaf in leaves])
        self._connection.rpc.call(self._stub.SetVcpuCpuid, request)

    @property
    def engine_registers(self) -> Collection[str]:
        """Names of the registers that the engine has."""
        return self.capabilities.registers

    def has(self, name: str) -> bool:
        """Whether the engine has this feature, exit or register, named as in `Capabilities` of
        core.proto."""
        return name in self._has

    def require(self, *names: str) -> None:
        """Raises Unsupported unless the engine has these features, exits and registers, named as in
        `Capabilities` of core.proto."""
        if missing := [name for name in names if not self.has(name)]:
            raise Unsupported(self.engine, ", ".join(missing))

    def check_alive(self) -> None:
        """Raises SessionEnded if it ended without this program's asking: its engine died, or core.

        Cheap to call often: core is asked at most every 0.4 seconds.
        """
        now = time.monotonic()
        if self._closed or now < self._checked + CHECK_EVERY_SECONDS:
            return
        self._checked = now
        if self._connection.fd_channel.hung_up():
            raise SessionEnded(self.name, "core closed the connection, or ended itself")
        try:
            self._connection.rpc.call(
                self._stub.GetSession, GetSessionRequest(name=self.name), CHECK_SECONDS
            )
        except Refused as refusal:
            if refusal.reason not in GONE or self._closed:
                return
            why = refusal.metadata.get("why") or refusal.message
            raise SessionEnded(self.name, why) from refusal
        except CoreUnavailable:
            return  # slow, or gone: if gone, the fd channel tells with the next look

    def close(self) -> None:
        """End the session: nothing of it is left in core when this returns. Again: nothing.

        Threads that serve its vCPUs end within a second. A session that has ended already, and
        core being gone, are no errors.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            vcpus = self._vcpus
        for vcpu in vcpus:
            vcpu.close()
        for relay in self._relays:
            relay.end()
        for ram in self.memory.rams():
            ram.forget(self)
        self._connection.forget(self)
        try:
            self._delete()
        finally:
            for relay in self._relays:
                relay.join()

    def _delete(self) -> None:
        try:
            self._connection.rpc.call(
                self._stub.DeleteSession, DeleteSessionRequest(name=self.name)
            )
        except CoreUnavailable:
            return
        except Refused as refusal:
            if refusal.reason not in GONE:
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _attachment(record: AttachmentRecord) -> Attachment:
    return Attachment(
        record.gpa,
        record.size,
        record.dataspace,
        record.offset,
        record.writable,
        record.executable,
    )
