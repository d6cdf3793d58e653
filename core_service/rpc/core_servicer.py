"""CoreService."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import grpc.aio
from vmsession.v1 import core_pb2, core_pb2_grpc

from core_service.drain import DRAIN_LIMIT
from core_service.life import Phase
from core_service.refusal import Refusal, invalid
from core_service.rpc import convert
from core_service.rpc.sight import sees_all
from dataspace.vcpu_page import ABI

if TYPE_CHECKING:
    from core_service.core import Core

Context = grpc.aio.ServicerContext[Any, Any]

VERSION: Final = version("vmsession")
PROGRESS_INTERVAL: Final = 5.0


class CoreServicer(core_pb2_grpc.CoreServiceServicer):
    """What core is, its engines, and leases."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def GetInfo(
        self, request: core_pb2.GetInfoRequest, context: Context
    ) -> core_pb2.GetInfoResponse:
        client = self._core.clients.of(context.peer())
        return core_pb2.GetInfoResponse(
            version=VERSION,
            page_abi=ABI,
            fd_channel_path=str(self._core.settings.fd_socket),
            client=convert.identity(client.identity),
            grace_seconds=self._core.settings.grace,
            ram=convert.ram_quota(client.account),
            capabilities=convert.capability_quota(client.account),
            draining=self._core.life.draining,
        )

    async def ListEngines(
        self, request: core_pb2.ListEnginesRequest, context: Context
    ) -> core_pb2.ListEnginesResponse:
        self._core.clients.of(context.peer())
        return core_pb2.ListEnginesResponse(
            engines=[
                core_pb2.Engine(
                    name=found.name,
                    available=found.hello is not None,
                    unavailable_because=found.why_not,
                    capabilities=convert.capabilities(found.hello) if found.hello else None,
                )
                for found in await self._core.engines.survey()
            ]
        )

    async def OpenFdChannel(
        self, request: core_pb2.OpenFdChannelRequest, context: Context
    ) -> core_pb2.OpenFdChannelResponse:
        client = self._core.clients.of(context.peer())
        client.must_live()
        return core_pb2.OpenFdChannelResponse(
            ticket=self._core.tickets.issue(client), path=str(self._core.settings.fd_socket)
        )

    async def KeepAlive(
        self, request: core_pb2.KeepAliveRequest, context: Context
    ) -> AsyncIterator[core_pb2.KeepAliveResponse]:
        client = self._core.clients.of(context.peer())
        interval = self._core.settings.keep_alive_interval
        client.must_live()
        client.hold()
        try:
            while not client.reclaimed:
                draining = self._core.life.draining
                yield core_pb2.KeepAliveResponse(interval_seconds=interval, draining=draining)
                with suppress(TimeoutError):
                    async with asyncio.timeout(interval):
                        await self._core.life.until(Phase.STOPPING if draining else Phase.DRAINING)
        finally:
            client.release()

    async def Drain(
        self, request: core_pb2.DrainRequest, context: Context
    ) -> AsyncIterator[core_pb2.DrainResponse]:
        client = self._core.clients.of(context.peer())
        if not sees_all(client):
            why = "only operators may drain core"
            raise Refusal("DENIED", why, why=why)
        drain = self._core.drain
        drain.begin(_within(request))
        while not drain.is_over:
            yield self._progress()
            await drain.progress(PROGRESS_INTERVAL)
        yield self._progress()

    def _progress(self) -> core_pb2.DrainResponse:
        drain = self._core.drain
        return core_pb2.DrainResponse(
            sessions=drain.sessions,
            remaining_seconds=drain.remaining,
            over=drain.is_over,
            core_pid=os.getpid(),
        )


def _within(request: core_pb2.DrainRequest) -> float | None:
    if not request.HasField("within_seconds"):
        return None
    if not 0 <= request.within_seconds <= DRAIN_LIMIT:  # nor NaN
        raise invalid("within_seconds", request.within_seconds, f"within 0 and {DRAIN_LIMIT:.0f}")
    return request.within_seconds
