"""grpc.health.v1.Health. Not the one of grpcio-health-checking, where a watcher that does not read
keeps others from being told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from core_service.health import SERVICES, WHOLE
from core_service.refusal import Refusal

if TYPE_CHECKING:
    from core_service.health import Health

Context = grpc.aio.ServicerContext[Any, Any]
Answer = health_pb2.HealthCheckResponse

KNOWN: Final = {WHOLE, *SERVICES}


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Tells what `Health` knows, to anybody who can connect."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> Answer:
        if request.service not in KNOWN:
            raise Refusal("NOT_FOUND", "there is no such service")
        return self._answer(request.service)

    async def List(self, request: Any, context: Context) -> Any:
        return health_pb2.HealthListResponse(  # type: ignore[attr-defined] # newer than its types
            statuses={service: self._answer(service) for service in KNOWN}
        )

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[Answer]:
        told = None
        while True:
            answer = self._answer(request.service)
            if answer != told:  # and look once more: it may change while this is sent
                yield answer
                told = answer
            elif self._health.stopping:
                return
            else:
                await self._health.change()

    def _answer(self, service: str) -> Answer:
        if service not in KNOWN:
            return Answer(status=Answer.SERVICE_UNKNOWN)
        return Answer(
            status=Answer.NOT_SERVING if self._health.why_not(service) else Answer.SERVING
        )
