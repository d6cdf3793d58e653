"""What a call's log lines are about."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio

from core_service.logs import about
from core_service.refusal import Refusal
from core_service.rpc.interceptor import Context, Handler, Interceptor

if TYPE_CHECKING:
    from core_service.client import Client
    from core_service.core import Core


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
        if handler is None or handler.unary_unary is None:
            return cast("Handler", handler)
        return grpc.unary_unary_rpc_method_handler(
            self._told(handler.unary_unary),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _told(self, behaviour: Any) -> Any:
        async def call(request: Any, context: Context) -> Any:
            try:
                client = self._core.clients.of(context.peer())
            except Refusal:  # which the call itself gives
                return await behaviour(request, context)
            about(client, **_objects(client, request))
            return await behaviour(request, context)

        return call


def _objects(client: Client, request: Any) -> dict[str, str]:
    """The session and vCPU that a request names, if they are the client's: nobody's lines may be taken
    for another's."""
    for field in ("vcpu", "session", "name"):
        name = getattr(request, field, "")
        if isinstance(name, str) and name.startswith("sessions/"):
            session, _, index = name.partition("/vcpus/")
            known = client.sessions.get(session)
            if known is None:
                return {}
            if index.isascii() and index.isdecimal() and int(index[:9]) in known.vcpus:
                return {"session": session, "vcpu": index[:9]}
            return {"session": session}
    return {}
