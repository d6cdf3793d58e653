"""VmSessionService: sessions and memory. vCPUs stand in `vcpu_calls`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc.aio
from vmsession.v1 import vm_session_pb2 as pb
from vmsession.v1 import vm_session_pb2_grpc

from core_service.dataspaces import holder
from core_service.engine.protocol import Capability
from core_service.logs import about
from core_service.refusal import invalid, shortened
from core_service.rpc import convert, vcpu_calls
from core_service.rpc.msr_filter import msr_ranges
from core_service.rpc.paging import page
from core_service.rpc.sight import sees
from dataspace.errors import InvalidDataspace
from dataspace.vcpu_page import ABI

if TYPE_CHECKING:
    from core_service.client import Client
    from core_service.core import Core
    from core_service.session import Session
    from core_service.vcpu import Vcpu

Context = grpc.aio.ServicerContext[Any, Any]


class VmSessionServicer(vm_session_pb2_grpc.VmSessionServiceServicer):
    """Sessions of the calling client."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def _client(self, context: Context) -> Client:
        return self._core.clients.of(context.peer())

    def _session(self, context: Context, name: str) -> Session:
        return self._core.session_of(self._client(context), name)

    def _vcpu(self, context: Context, name: str) -> tuple[Session, Vcpu]:
        return self._core.vcpu_of(self._client(context), name)

    # -- sessions

    async def CreateSession(
        self, request: pb.CreateSessionRequest, context: Context
    ) -> pb.CreateSessionResponse:
        client = self._client(context)

        async def make() -> pb.CreateSessionResponse:
            session = await self._core.create_session(
                client,
                request.label,
                request.engine,
                request.ram_quota,
                request.capability_quota,
                request.priority if request.HasField("priority") else None,
                request.affinity,
            )
            return pb.CreateSessionResponse(
                session=convert.session(session),
                capabilities=convert.capabilities(session.engine.hello),
            )

        return await client.once(request, make)

    async def GetSession(
        self, request: pb.GetSessionRequest, context: Context
    ) -> pb.GetSessionResponse:
        session = self._session(context, request.name)
        return pb.GetSessionResponse(session=convert.session(session))

    async def ListSessions(
        self, request: pb.ListSessionsRequest, context: Context
    ) -> pb.ListSessionsResponse:
        client = self._client(context)
        chosen, token = page(
            [session for session in self._core.sessions.values() if sees(client, session.uid)],
            lambda session: session.name,
            request.page_size,
            request.page_token,
            lambda token: self._core.names.could_be("sessions", token),
        )
        return pb.ListSessionsResponse(
            sessions=[convert.session(session) for session in chosen],
            next_page_token=token,
            revision=self._core.ledger.revision,
        )

    async def DeleteSession(
        self, request: pb.DeleteSessionRequest, context: Context
    ) -> pb.DeleteSessionResponse:
        client = self._client(context)

        async def make() -> pb.DeleteSessionResponse:
            session = self._core.session_of(client, request.name)
            await self._core.close_session(session, "session deleted", holder(client))
            return pb.DeleteSessionResponse()

        return await client.once(request, make)

    async def UpgradeQuota(
        self, request: pb.UpgradeQuotaRequest, context: Context
    ) -> pb.UpgradeQuotaResponse:
        client = self._client(context)

        async def make() -> pb.UpgradeQuotaResponse:
            session = self._core.session_of(client, request.session)
            session.upgrade(request.ram, request.capabilities)
            account = session.account
            return pb.UpgradeQuotaResponse(
                ram=convert.ram_quota(account), capabilities=convert.capability_quota(account)
            )

        return await client.once(request, make)

    # -- memory

    async def Attach(self, request: pb.AttachRequest, context: Context) -> pb.AttachResponse:
        client = self._client(context)

        async def make() -> pb.AttachResponse:
            session = self._core.session_of(client, request.session)
            if not request.dataspace.startswith("dataspaces/"):
                raise InvalidDataspace("is no dataspace", name=shortened(request.dataspace))
            attachment = await session.memory.attach(
                self._core.dataspaces.of(client, request.dataspace),
                request.gpa,
                request.offset,
                request.size,
                read_only=request.read_only,
            )
            return pb.AttachResponse(attachment=convert.attachment(attachment))

        return await client.once(request, make)

    async def Detach(self, request: pb.DetachRequest, context: Context) -> pb.DetachResponse:
        client = self._client(context)

        async def make() -> pb.DetachResponse:
            session = self._core.session_of(client, request.session)
            pieces = await session.memory.detach(request.gpa, request.size)
            return pb.DetachResponse(detached=[convert.attachment(piece) for piece in pieces])

        return await client.once(request, make)

    async def AttachPic(
        self, request: pb.AttachPicRequest, context: Context
    ) -> pb.AttachPicResponse:
        self._session(context, request.session)
        raise InvalidDataspace("x86 has no interrupt controller in core", gpa=request.gpa)

    async def ListAttachments(
        self, request: pb.ListAttachmentsRequest, context: Context
    ) -> pb.ListAttachmentsResponse:
        session = self._session(context, request.session)
        return pb.ListAttachmentsResponse(
            attachments=[
                convert.attachment(attachment) for attachment in session.memory.attachments()
            ]
        )

    # -- vCPUs

    async def CreateVcpu(
        self, request: pb.CreateVcpuRequest, context: Context
    ) -> pb.CreateVcpuResponse:
        client = self._client(context)
        page_transport = _page_transport(request)

        async def make() -> pb.CreateVcpuResponse:
            session = self._core.session_of(client, request.session)
            vcpu = await session.create_vcpu(request.index, page_transport=page_transport)
            return pb.CreateVcpuResponse(vcpu=convert.vcpu(vcpu))

        return await client.once(request, make)

    async def ListVcpus(
        self, request: pb.ListVcpusRequest, context: Context
    ) -> pb.ListVcpusResponse:
        client = self._client(context)
        session = self._core.sessions.get(request.session)
        if session is None or session.closing or not sees(client, session.uid):
            session = self._core.session_of(client, request.session)
        times = session.engine.run_times()
        vcpus = sorted(session.vcpus.values(), key=lambda vcpu: vcpu.index)
        return pb.ListVcpusResponse(
            vcpus=[convert.vcpu(vcpu, times.get(vcpu.index)) for vcpu in vcpus]
        )

    async def GetVcpuCpuid(
        self, request: pb.GetVcpuCpuidRequest, context: Context
    ) -> pb.GetVcpuCpuidResponse:
        return await vcpu_calls.get_cpuid(*self._vcpu(context, request.vcpu))

    async def SetVcpuCpuid(
        self, request: pb.SetVcpuCpuidRequest, context: Context
    ) -> pb.SetVcpuCpuidResponse:
        await vcpu_calls.set_cpuid(*self._vcpu(context, request.vcpu), request)
        return pb.SetVcpuCpuidResponse()

    async def SetMsrFilter(
        self, request: pb.SetMsrFilterRequest, context: Context
    ) -> pb.SetMsrFilterResponse:
        session = self._session(context, request.session)
        session.engine.must_have(Capability.MSR_FILTER)
        await session.engine.set_msr_filter(msr_ranges(request.ranges))
        return pb.SetMsrFilterResponse()

    async def Run(self, request: pb.RunRequest, context: Context) -> pb.RunResponse:
        await vcpu_calls.run(*self._vcpu(context, request.vcpu), request)
        return pb.RunResponse()

    async def Pause(self, request: pb.PauseRequest, context: Context) -> pb.PauseResponse:
        session, vcpu = self._vcpu(context, request.vcpu)
        await session.engine.pause(vcpu.index)
        return pb.PauseResponse()

    async def RequestWindow(
        self, request: pb.RequestWindowRequest, context: Context
    ) -> pb.RequestWindowResponse:
        session, vcpu = self._vcpu(context, request.vcpu)
        await session.engine.window(vcpu.index)
        return pb.RequestWindowResponse()

    async def GetVcpuState(
        self, request: pb.GetVcpuStateRequest, context: Context
    ) -> pb.GetVcpuStateResponse:
        session, vcpu = self._vcpu(context, request.vcpu)
        return await vcpu_calls.get_state(session, vcpu, request)

    async def UpdateVcpuState(
        self, request: pb.UpdateVcpuStateRequest, context: Context
    ) -> pb.UpdateVcpuStateResponse:
        session, vcpu = self._vcpu(context, request.vcpu)
        await vcpu_calls.update_state(session, vcpu, request)
        return pb.UpdateVcpuStateResponse()

    async def HandleExits(
        self, request_iterator: AsyncIterator[pb.HandleExitsRequest], context: Context
    ) -> AsyncIterator[pb.HandleExitsResponse]:
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("message") != "open":
            raise invalid("message", "no open", "open first, replies after")
        session, vcpu = self._vcpu(context, first.open)
        about(session=session.name, vcpu=str(vcpu.index))
        exits = vcpu_calls.handle_exits(session, vcpu, request_iterator)
        async with aclosing(exits):
            async for response in exits:
                yield response


def _page_transport(request: pb.CreateVcpuRequest) -> bool:
    if request.transport == pb.TRANSPORT_STREAM:
        return False
    if request.transport != pb.TRANSPORT_PAGE:
        raise invalid("transport", request.transport, "TRANSPORT_PAGE or TRANSPORT_STREAM")
    if request.page_abi != ABI:
        raise invalid("page_abi", request.page_abi, f"{ABI}, the ABI that this core speaks")
    return True
