"""gRPC and nothing else: a server as core's, whose methods send back what they get."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import grpc.aio
import uvloop

SERVICE: Final = "bench.Echo"
UNARY: Final = f"/{SERVICE}/Unary"
STREAM: Final = f"/{SERVICE}/Stream"


async def unary(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    """One request, one answer."""
    return request


async def stream(
    requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
) -> AsyncIterator[bytes]:
    """An answer to each."""
    async for request in requests:
        yield request


async def serve(socket: str) -> None:
    """Until the input ends."""
    server = grpc.aio.server()
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.stream_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
