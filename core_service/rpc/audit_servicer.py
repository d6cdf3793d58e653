"""AuditService."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc.aio
from vmsession.v1 import audit_pb2 as pb
from vmsession.v1 import audit_pb2_grpc

from core_service.dataspaces import holder
from core_service.rpc import convert
from core_service.rpc.paging import page
from dataspace.record import Record, State

if TYPE_CHECKING:
    from core_service.client import Client
    from core_service.core import Core

Context = grpc.aio.ServicerContext[Any, Any]


def sees_all(client: Client) -> bool:
    """Core's own user and root audit everybody."""
    return client.identity.uid in {0, os.geteuid()}


class AuditServicer(audit_pb2_grpc.AuditServiceServicer):
    """The ledger, as far as the caller may see it."""

    def __init__(self, core: Core, extra_fds: Callable[[], int]) -> None:
        self._core = core
        self._extra_fds = extra_fds

    def _records(self, client: Client) -> list[Record]:
        records = self._core.ledger.all()
        if not sees_all(client):
            mine = holder(client)
            records = [record for record in records if record.holder == mine]
        return sorted(records, key=lambda record: record.created)

    async def ListRecords(
        self, request: pb.ListRecordsRequest, context: Context
    ) -> pb.ListRecordsResponse:
        records = self._records(self._core.clients.of(context.peer()))
        if request.alive_only:
            records = [record for record in records if record.state is not State.FREED]
        chosen, token = page(
            records, lambda record: record.name, request.page_size, request.page_token
        )
        return pb.ListRecordsResponse(
            records=[convert.record(record) for record in chosen],
            next_page_token=token,
            revision=self._core.ledger.revision,
        )

    async def GetTotals(
        self, request: pb.GetTotalsRequest, context: Context
    ) -> pb.GetTotalsResponse:
        client = self._core.clients.of(context.peer())
        if not sees_all(client):
            return self._own_totals(client)
        totals = self._core.ledger.totals()
        return pb.GetTotalsResponse(
            live=totals.live + totals.held,
            live_bytes=totals.live_bytes + totals.held_bytes,
            held_bytes=totals.held_bytes,
            created=totals.created,
            freed=totals.freed,
            sessions=len(self._core.sessions),
            clients=len(self._core.clients),
            engine_processes=self._core.engines.processes,
            extra_fds=self._extra_fds(),
        )

    def _own_totals(self, client: Client) -> pb.GetTotalsResponse:
        records = self._records(client)
        live = [record for record in records if record.state is not State.FREED]
        return pb.GetTotalsResponse(
            live=len(live),
            live_bytes=sum(record.size for record in live),
            held_bytes=sum(record.size for record in live if record.state is State.HELD),
            created=len(records),
            freed=len(records) - len(live),
            sessions=len(client.sessions),
            clients=1,
        )
