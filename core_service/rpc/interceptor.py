"""The one place where errors become gRPC statuses."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NoReturn, cast

import grpc
import grpc.aio
import structlog
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from core_service.identity import EXHAUSTED
from core_service.refusal import CODES, DOMAIN, Refusal
from core_service.rpc.decoding import Decoded, must_be_decoded, tolerant
from core_service.users import SHARED
from dataspace.errors import DataspaceError, OutOfCaps, OutOfRam

log = structlog.get_logger()

if TYPE_CHECKING:  # grpc's own classes are generic in their stubs only
    Handler = grpc.RpcMethodHandler[Any, Any]
    Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    Handler = grpc.RpcMethodHandler
    Interceptor = grpc.aio.ServerInterceptor
Context = grpc.aio.ServicerContext[Any, Any]


class Errors(Interceptor):
    """Maps Refusal and DataspaceError to their status, and anything else to INTERNAL, logged."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None:  # gRPC answers UNIMPLEMENTED
            return cast("Handler", None)
        method = handler_call_details.method
        decode, encode = tolerant(handler.request_deserializer), handler.response_serializer
        if handler.request_streaming and handler.response_streaming:
            behaviour = _streaming(handler.stream_stream, method, Decoded)
            return grpc.stream_stream_rpc_method_handler(behaviour, decode, encode)
        if handler.response_streaming:
            behaviour = _streaming(handler.unary_stream, method, must_be_decoded)
            return grpc.unary_stream_rpc_method_handler(behaviour, decode, encode)
        assert not handler.request_streaming, method
        behaviour = _unary(handler.unary_unary, method)
        return grpc.unary_unary_rpc_method_handler(behaviour, decode, encode)


def _unary(behaviour: Any, method: str) -> Any:
    async def call(request: Any, context: Context) -> Any:
        try:
            return await behaviour(must_be_decoded(request), context)
        except Exception as error:
            await _abort(context, error, method)

    return call


def _streaming(behaviour: Any, method: str, decoded: Callable[[Any], Any]) -> Any:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            # closed here, not by the garbage collector: a lease or a stream ends with its call
            async with aclosing(behaviour(decoded(request), context)) as messages:
                async for message in messages:
                    yield message
        except Exception as error:
            await _abort(context, error, method)

    return call


async def _abort(context: Context, error: Exception, method: str) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    refusal = refusal_of(error, method)
    info = error_details_pb2.ErrorInfo(
        reason=refusal.reason,
        domain=DOMAIN,
        metadata={key: str(value) for key, value in refusal.numbers.items()},
    )
    detail = any_pb2.Any()
    detail.Pack(info)
    status = status_pb2.Status(code=refusal.code.value[0], message=str(refusal), details=[detail])
    await context.abort(
        refusal.code,
        str(refusal),
        (("grpc-status-details-bin", status.SerializeToString()),),
    )
    raise AssertionError  # abort does not return


def refusal_of(error: Exception, method: str) -> Refusal:
    """What the caller is told of an error; a defect goes to the log."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, OutOfRam | OutOfCaps):
        return _out_of_quota(error)
    if isinstance(error, DataspaceError) and error.reason in CODES:
        return Refusal(error.reason, str(error), **error.numbers)
    if isinstance(error, OSError) and error.errno in EXHAUSTED:
        why = f"core lacks what this takes: {error.strerror}"
        return Refusal("MEMORY_FAILURE", why, errno=error.errno)
    incident = secrets.token_hex(4)
    log.error("defect", method=method, incident=incident, exc_info=error)
    return Refusal(
        "INTERNAL", f"a defect in core; its log tells more under {incident}", incident=incident
    )


def _out_of_quota(error: OutOfRam | OutOfCaps) -> Refusal:
    """What others use of core's quota is not told."""
    if error.numbers["account"] != SHARED:
        return Refusal(error.reason, str(error), **error.numbers)
    asked = error.numbers["asked"]
    return Refusal(error.reason, f"{asked} asked: more than core has left to give", asked=asked)
