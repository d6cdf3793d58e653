"""AuditService."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

import grpc.aio
from vmsession.v1 import audit_pb2 as pb
from vmsession.v1 import audit_pb2_grpc

from core_service.dataspaces import uid_of
from core_service.rpc import convert
from core_service.rpc.paging import page_size, wrong_token
from core_service.rpc.sight import sees, sees_all
from dataspace.record import State

if TYPE_CHECKING:
    from core_service.client import Client
    from core_service.core import Core

Context = grpc.aio.ServicerContext[Any, Any]


class AuditServicer(audit_pb2_grpc.AuditServiceServicer):
    """The ledger, as far as the caller may see it."""

    def __init__(self, core: Core, extra_fds: Callable[[], int]) -> None:
        self._core = core
        self._extra_fds = extra_fds

    async def ListRecords(
        self, request: pb.ListRecordsRequest, context: Context
    ) -> pb.ListRecordsResponse:
        client = self._core.clients.of(context.peer())
        ledger = self._core.ledger
        count = page_size(request.page_size)
        found = ledger.created_after(
            self._after(request.page_token),
            shown=_shown_to(client),
            gone=not request.alive_only,
        )
        chosen = list(islice(found, count))
        more = next(found, None) is not None
        return pb.ListRecordsResponse(
            records=[convert.record(record) for _, record in chosen],
            next_page_token=str(chosen[-1][0]) if more else "",
            revision=ledger.revision,
        )

    @staticmethod
    def _after(token: str) -> int:
        if not token:
            return 0
        if not (token.isascii() and token.isdecimal() and len(token) < 20):
            raise wrong_token(token)
        return int(token)

    async def GetTotals(
        self, request: pb.GetTotalsRequest, context: Context
    ) -> pb.GetTotalsResponse:
        client = self._core.clients.of(context.peer())
        if not sees_all(client):
            return self._totals_of_user(client)
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

    def _totals_of_user(self, client: Client) -> pb.GetTotalsResponse:
        shown = _shown_to(client)
        records = [record for _, record in self._core.ledger.created_after(0, shown=shown)]
        live = [record for record in records if record.state is not State.FREED]
        return pb.GetTotalsResponse(
            live=len(live),
            live_bytes=sum(record.size for record in live),
            held_bytes=sum(record.size for record in live if record.state is State.HELD),
            created=len(records),
            freed=len(records) - len(live),
            sessions=sum(
                1 for session in self._core.sessions.values() if sees(client, session.uid)
            ),
            clients=self._core.clients.of_user(client.identity.uid),
        )


def _shown_to(client: Client) -> Callable[[str], bool]:
    return lambda holder: sees(client, uid_of(holder))
