"""The promise of the audit log, kept in one place: nothing is made that could not be recorded, and every
mutation is on disk before it is answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

import grpc
import grpc.aio
from vmsession.v1 import dataspace_pb2, vm_session_pb2

from core_service.audit import AuditFailure
from core_service.rpc.interceptor import Context, Handler, Interceptor

if TYPE_CHECKING:
    from core_service.core import Core

MAKING: Final = (
    vm_session_pb2.CreateSessionRequest,
    vm_session_pb2.UpgradeQuotaRequest,
    vm_session_pb2.CreateVcpuRequest,
    vm_session_pb2.AttachRequest,
    dataspace_pb2.CreateDataspaceRequest,
    dataspace_pb2.CreateRomRequest,
    dataspace_pb2.SealDataspaceRequest,
    dataspace_pb2.ShareDataspaceRequest,
    dataspace_pb2.AcceptShareRequest,
)
"""Requests that are refused while the log cannot be written. What frees is carried out nevertheless."""


class Recording(Interceptor):
    """Holds back the answer to each mutation, which is what takes a request id, until the log has what
    it did. If that cannot be, the caller is told AUDIT_FAILURE, and that it is done."""

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
            self._recorded(handler.unary_unary),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _recorded(self, behaviour: Any) -> Any:
        async def call(request: Any, context: Context) -> Any:
            if not hasattr(request, "request_id"):
                return await behaviour(request, context)
            if isinstance(request, MAKING):
                self._core.must_record(self._core.clients.of(context.peer()))
            try:
                answer = await behaviour(request, context)
            except Exception:
                with suppress(AuditFailure):  # what is refused leaves nothing that he must know of
                    await self._core.everything_recorded()
                raise
            try:
                await self._core.everything_recorded()
            except AuditFailure as failure:
                raise AuditFailure(failure.why, done=True) from failure
            return answer

        return call
