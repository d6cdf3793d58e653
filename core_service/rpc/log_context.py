"""What a call's log lines are about."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Final, cast

import grpc
import grpc.aio

from core_service.logs import about
from core_service.refusal import DOMAIN, Refusal
from core_service.rpc.interceptor import Context, Handler, Interceptor

if TYPE_CHECKING:
    from core_service.client import Client
    from core_service.core import Core

OURS: Final = f"/{DOMAIN}."  # health and reflection know no clients


class LogContext(Interceptor):
    """Has every line that a call writes name its client and, where it names one of the client's, the
    session. gRPC runs each call in a task of its own, so that nothing need be taken back."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(OURS):
            return cast("Handler", handler)
        coders = handler.request_deserializer, handler.response_serializer
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary), *coders)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(self._stream(handler.unary_stream), *coders)
        if handler.stream_stream:  # whose request is an iterator, and names nothing
            return grpc.stream_stream_rpc_method_handler(
                self._stream(handler.stream_stream), *coders
            )
        return handler

    def _unary(self, behaviour: Any) -> Any:
        async def call(request: Any, context: Context) -> Any:
            self._about(request, context)
            return await behaviour(request, context)

        return call

    def _stream(self, behaviour: Any) -> Any:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            self._about(request, context)
            async with aclosing(behaviour(request, context)) as messages:
                async for message in messages:
                    yield message

        return call

    def _about(self, request: Any, context: Context) -> None:
        with suppress(Refusal):  # which the call itself gives
            client = self._core.clients.of(context.peer())
            about(client, **objects_of(client, request))


def objects_of(client: Client, request: Any) -> dict[str, str]:
    """The session and vCPU that a request names, if they are the client's: nobody's lines may be taken
    for another's, and nothing that a client made up comes into them."""
    for field in ("vcpu", "session", "name"):
        session, _, index = str(getattr(request, field, "")).partition("/vcpus/")
        if known := client.sessions.get(session):
            if index in map(str, known.vcpus):
                return {"session": session, "vcpu": index}
            return {"session": session}
    return {}
