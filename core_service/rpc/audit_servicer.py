"""AuditService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from itertools import islice
from typing import TYPE_CHECKING, Any

import grpc.aio
from vmsession.v1 import audit_pb2 as pb
from vmsession.v1 import audit_pb2_grpc

from core_service.audit.query import EventFilter
from core_service.dataspaces import uid_of
from core_service.refusal import Refusal, invalid, not_found
from core_service.rpc import convert
from core_service.rpc.audit_filters import (
    NothingToSee,
    event_filter,
    fitting,
    record_filter,
    revision,
    uids_seen,
)
from core_service.rpc.audit_log import AuditQueries
from core_service.rpc.audit_totals import totals
from core_service.rpc.audit_watch import Watcher, counted
from core_service.rpc.paging import LIMIT, page_size, wrong_token
from core_service.rpc.sight import sees_all
from core_service.verify.verification import Verification
from dataspace.errors import UnknownDataspace

if TYPE_CHECKING:
    from core_service.audit.fold import Life
    from core_service.audit.query import RecordFilter
    from core_service.client import Client
    from core_service.core import Core

Context = grpc.aio.ServicerContext[Any, Any]


class AuditServicer(audit_pb2_grpc.AuditServiceServicer):
    """The ledger and the log, as far as the caller may see them."""

    def __init__(self, core: Core, extra_fds: Callable[[], int]) -> None:
        self._core = core
        self._extra_fds = extra_fds
        self._verification = Verification(core)

    def _client(self, context: Context) -> Client:
        return self._core.clients.of(context.peer())

    async def ListRecords(
        self, request: pb.ListRecordsRequest, context: Context
    ) -> pb.ListRecordsResponse:
        client = self._client(context)
        count, after = page_size(request.page_size), _after(request.page_token)
        try:
            only = record_filter(client, request)
        except NothingToSee:
            return pb.ListRecordsResponse(revision=self._core.ledger.revision)
        if request.alive_only or request.session:
            found = self._living(request.session, only, after, count + 1)
        else:
            found = await self._ever(client, only, after, count + 1)
        count = fitting([record for _, record in found[:count]])
        return pb.ListRecordsResponse(
            records=[record for _, record in found[:count]],
            next_page_token=str(found[count - 1][0]) if len(found) > count else "",
            revision=self._core.ledger.revision,
        )

    def _living(
        self, session: str, only: RecordFilter, after: int, count: int
    ) -> list[tuple[int, pb.DataspaceRecord]]:
        """What is not freed, from memory."""
        found = self._core.ledger.created_after(
            after,
            shown=lambda holder: only.uids is None or uid_of(holder) in only.uids,
            kinds=only.kinds,
            session=session,
            gone=False,
        )
        if only.at is not None:
            moment = only.at
            found = (each for each in found if each[1].created.wall_ns <= moment)
        return [
            (revision, convert.record(record, *self._core.measured(record.name)))
            for revision, record in islice(found, count)
        ]

    async def _ever(
        self, client: Client, only: RecordFilter, after: int, count: int
    ) -> list[tuple[int, pb.DataspaceRecord]]:
        """What ever lived, from the log."""
        log = AuditQueries(self._core, client)
        lives = await log.latest(log.query.records, after, count, only)
        return [(life.revision, self._record(life)) for life in lives]

    def _record(self, life: Life) -> pb.DataspaceRecord:
        """What is here is told as it is now, but for an earlier page of a vCPU that has another now."""
        try:
            record = self._core.ledger.record(life.name)
        except UnknownDataspace:
            return convert.past(life)
        if record.created != (life.created_monotonic_ns, life.created_wall_ns):
            return convert.past(life)
        return convert.record(record, *self._core.measured(life.name))

    async def ListEvents(
        self, request: pb.ListEventsRequest, context: Context
    ) -> pb.ListEventsResponse:
        client = self._client(context)
        count = page_size(request.page_size)
        after = revision("after_revision", request.after_revision)
        log = AuditQueries(self._core, client)
        try:
            only = event_filter(client, request)
        except NothingToSee:
            return pb.ListEventsResponse()
        await log.settled()
        found = await log.events(after, count + 1, only)
        return pb.ListEventsResponse(
            events=[convert.event(*recorded) for recorded in found[:count]],
            next_after_revision=found[count - 1].event.revision if len(found) > count else 0,
        )

    async def GetHistory(
        self, request: pb.GetHistoryRequest, context: Context
    ) -> pb.GetHistoryResponse:
        client = self._client(context)
        if request.limit > LIMIT:
            raise invalid("limit", request.limit, f"at most {LIMIT}")
        limit = request.limit or LIMIT
        log = AuditQueries(self._core, client)
        if not request.name:
            raise not_found(request.name)
        only = EventFilter(subject=request.name, uids=uids_seen(client, None))
        found = await log.latest(log.query.events, 0, limit + 1, only)
        compacted = await log.began_earlier(request.name, only.uids)
        if not found and not compacted:
            raise not_found(request.name)
        return pb.GetHistoryResponse(
            events=[convert.event(*recorded) for recorded in found[:limit]],
            truncated=len(found) > limit,
            compacted=compacted,
        )

    async def GetTotals(
        self, request: pb.GetTotalsRequest, context: Context
    ) -> pb.GetTotalsResponse:
        return await totals(self._core, self._client(context), request.group_by, self._extra_fds)

    async def Watch(
        self, request: pb.WatchRequest, context: Context
    ) -> AsyncIterator[pb.WatchResponse]:
        client = self._client(context)
        watcher = Watcher(self._core, client, revision("after_revision", request.after_revision))
        with counted(client):
            async with aclosing(watcher.messages()) as messages:
                async for message in messages:
                    yield message

    async def Verify(self, request: pb.VerifyRequest, context: Context) -> pb.VerifyResponse:
        if not sees_all(self._client(context)):
            raise Refusal("DENIED", "only core's own user and root may verify")
        return convert.verified(await self._verification.run(whole_chain=request.whole_chain))


def _after(token: str) -> int:
    if not token:
        return 0
    if not (token.isascii() and token.isdecimal() and len(token) < 19):
        raise wrong_token(token)
    return int(token)
