"""What a VMM does with one vCPU over gRPC: run it, read and write its state, serve its exits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

from vmsession.v1 import vm_session_pb2 as pb

from core_service.refusal import Refusal, invalid
from core_service.rpc.exits import charge, exit_message, reply_half, state_message, wanted_mask
from dataspace.registers import SCALARS, SEGMENTS
from dataspace.vcpu_page import HALF_BYTES, EngineHalf, VmmHalf

if TYPE_CHECKING:
    from core_service.session import Session
    from core_service.vcpu import Vcpu


async def run(session: Session, vcpu: Vcpu, request: pb.RunRequest) -> None:
    """Run a stopped vCPU. Raises Refusal NOT_STOPPED, INVALID_ARGUMENT."""
    reply = request.reply
    if reply.wanted:
        vcpu.wanted = wanted_mask(reply.wanted)
    half = reply_half(reply, vcpu.wanted)
    await session.engine.run(vcpu.index, reply.sequence, half)


async def get_state(
    session: Session, vcpu: Vcpu, request: pb.GetVcpuStateRequest
) -> pb.GetVcpuStateResponse:
    """Read registers. Raises Refusal NOT_STOPPED, MID_INSTRUCTION, INVALID_ARGUMENT."""
    wanted = VmmHalf(bytearray(HALF_BYTES))
    wanted.want(*wanted_mask(request.wanted or (*SCALARS, *SEGMENTS)))
    half = EngineHalf(await session.engine.get_state(vcpu.index, bytes(wanted.u8)))
    return pb.GetVcpuStateResponse(state=state_message(half), sequence=half.exit_seq)


async def update_state(session: Session, vcpu: Vcpu, request: pb.UpdateVcpuStateRequest) -> None:
    """Write registers. Raises Refusal NOT_STOPPED, MID_INSTRUCTION, INVALID_ARGUMENT."""
    charged = VmmHalf(bytearray(HALF_BYTES))
    charge(charged, request.state)
    await session.engine.set_state(vcpu.index, bytes(charged.u8))


async def handle_exits(
    session: Session, vcpu: Vcpu, requests: AsyncIterator[pb.HandleExitsRequest]
) -> AsyncGenerator[pb.HandleExitsResponse, None]:
    """Exits out, replies in, each as it comes. A refused reply ends the stream."""
    if vcpu.page:
        raise Refusal("WRONG_TRANSPORT", f"{vcpu.name} has a page: it is served there")
    vcpu.stream.serve()
    replies = asyncio.ensure_future(_take_replies(session, vcpu, requests))
    replies.add_done_callback(_seen)
    try:
        while (half := await _next_exit(vcpu, replies)) is not None:
            yield pb.HandleExitsResponse(exit=exit_message(half))
    finally:
        replies.cancel()
        vcpu.stream.leave()


def _seen(replies: asyncio.Future[None]) -> None:
    """A reply that fails while its session ends interests nobody any more."""
    if not replies.cancelled():
        replies.exception()


async def _next_exit(vcpu: Vcpu, replies: asyncio.Future[None]) -> EngineHalf | None:
    """The next exit; None when the session or the client's side ended. Raises what a reply did."""
    following = asyncio.ensure_future(vcpu.stream.next())
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
    session: Session, vcpu: Vcpu, requests: AsyncIterator[pb.HandleExitsRequest]
) -> None:
    async for request in requests:
        if request.WhichOneof("message") != "reply":
            raise invalid("message", request.WhichOneof("message"), "a reply")
        await run(session, vcpu, pb.RunRequest(vcpu=vcpu.name, reply=request.reply))
