"""What a VMM does with one vCPU over gRPC: run it, read and write its state, serve its exits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

from vmsession.v1 import vm_session_pb2 as pb

from core_service.engine.protocol import Capability, Exit
from core_service.refusal import Refusal, invalid
from core_service.rpc.cpuid import cpuid_table, leaf_messages
from core_service.rpc.exits import (
    REGISTERS,
    charge,
    exit_message,
    fpu_area,
    reply_half,
    state_message,
    wanted_mask,
)
from dataspace.vcpu_page import HALF_BYTES, EngineHalf, VmmHalf

if TYPE_CHECKING:
    from vmsession.v1 import vcpu_pb2

    from core_service.session import Session
    from core_service.vcpu import ExitStream, Vcpu


async def run(session: Session, vcpu: Vcpu, request: pb.RunRequest) -> None:
    """Run a stopped vCPU. Raises Refusal NOT_STOPPED, UNSUPPORTED, INVALID_ARGUMENT."""
    reply = request.reply
    before = vcpu.wanted
    wanted = wanted_mask(reply.wanted) if reply.wanted else before
    half = reply_half(reply, wanted)
    fpu = _fpu(session, vcpu, reply.state)

    def refused() -> None:
        vcpu.wanted = before
        vcpu.exits.run_refused()

    vcpu.wanted = wanted
    vcpu.exits.run_asked()
    await session.engine.run(vcpu.index, reply.sequence, half, fpu, refused)


def _fpu(session: Session, vcpu: Vcpu, state: vcpu_pb2.VcpuState) -> bytes:
    """The FPU area that is charged. Raises Refusal UNSUPPORTED, NOT_STOPPED, INVALID_ARGUMENT."""
    if not state.HasField("fpu"):
        return b""
    session.engine.must_have(Capability.FPU)
    if not vcpu.fpu_size:
        raise Refusal(
            "NOT_STOPPED", f"{vcpu.name} never ran: STARTUP tells the size of its FPU area"
        )
    return fpu_area(state, vcpu.fpu_size)


async def get_state(
    session: Session, vcpu: Vcpu, request: pb.GetVcpuStateRequest
) -> pb.GetVcpuStateResponse:
    """Read registers. Raises Refusal NOT_STOPPED, MID_INSTRUCTION, INVALID_ARGUMENT."""
    wanted = VmmHalf(bytearray(HALF_BYTES))
    wanted.want(*wanted_mask(request.wanted or sorted(REGISTERS)))
    told = await session.engine.get_state(vcpu.index, bytes(wanted.u8))
    sequence = EngineHalf(told.half).exit_seq
    return pb.GetVcpuStateResponse(state=state_message(told), sequence=sequence)


async def update_state(session: Session, vcpu: Vcpu, request: pb.UpdateVcpuStateRequest) -> None:
    """Write registers. Raises Refusal NOT_STOPPED, MID_INSTRUCTION, UNSUPPORTED, INVALID_ARGUMENT."""
    charged = VmmHalf(bytearray(HALF_BYTES))
    charge(charged, request.state)
    fpu = _fpu(session, vcpu, request.state)
    await session.engine.set_state(vcpu.index, bytes(charged.u8), fpu)


async def get_cpuid(session: Session, vcpu: Vcpu) -> pb.GetVcpuCpuidResponse:
    """Read the CPUID table. Raises Refusal NOT_STOPPED, UNSUPPORTED."""
    session.engine.must_have(Capability.CPUID)
    leaves = leaf_messages(await session.engine.get_cpuid(vcpu.index))
    return pb.GetVcpuCpuidResponse(leaves=leaves)


async def set_cpuid(session: Session, vcpu: Vcpu, request: pb.SetVcpuCpuidRequest) -> None:
    """Set the CPUID table. Raises Refusal ALREADY_STARTED, UNSUPPORTED, INVALID_ARGUMENT."""
    session.engine.must_have(Capability.CPUID)
    table = cpuid_table(request.leaves)
    try:
        await session.engine.set_cpuid(vcpu.index, table)
    except Refusal as refusal:
        if refusal.reason != "INVALID_ARGUMENT":
            raise
        raise invalid(
            "leaves", f"{len(table)} leaves", f"a table that fits: {refusal}"
        ) from refusal


async def handle_exits(
    session: Session, vcpu: Vcpu, requests: AsyncIterator[pb.HandleExitsRequest]
) -> AsyncGenerator[pb.HandleExitsResponse, None]:
    """Exits out, replies in, each as it comes. A refused reply ends the stream."""
    if vcpu.page:
        raise Refusal("WRONG_TRANSPORT", f"{vcpu.name} has a page: it is served there")
    stream = vcpu.exits.serve()
    replies = asyncio.ensure_future(_take_replies(session, vcpu, stream, requests))
    replies.add_done_callback(_seen)
    try:
        while (arrived := await _next_exit(stream, replies)) is not None:
            yield pb.HandleExitsResponse(exit=exit_message(arrived))
    finally:
        replies.cancel()


def _seen(done: asyncio.Future[Any]) -> None:
    """An exit or a reply that fails while its stream ends interests nobody any more."""
    if not done.cancelled():
        done.exception()


async def _next_exit(stream: ExitStream, replies: asyncio.Future[None]) -> Exit | None:
    """The next exit; None when the session or the client's side ended. Raises what a reply did."""
    following = asyncio.ensure_future(stream.next())
    following.add_done_callback(_seen)
    try:
        both: set[asyncio.Future[Any]] = {following, replies}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            return following.result()
        replies.result()
        return None
    finally:
        following.cancel()


async def _take_replies(
    session: Session,
    vcpu: Vcpu,
    stream: ExitStream,
    requests: AsyncIterator[pb.HandleExitsRequest],
) -> None:
    async for request in requests:
        if request.WhichOneof("message") != "reply":
            raise invalid("message", request.WhichOneof("message"), "a reply")
        stream.must_serve()
        await run(session, vcpu, pb.RunRequest(vcpu=vcpu.name, reply=request.reply))
