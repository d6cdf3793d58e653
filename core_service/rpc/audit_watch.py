"""What a watcher is told: the past from the log, the new as it is recorded, and what lives where it fell
behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from vmsession.v1 import audit_pb2 as pb

from core_service.audit.query import EventFilter
from core_service.audit.watch import LaggedError
from core_service.dataspaces import uid_of
from core_service.refusal import Refusal, invalid
from core_service.rpc import convert
from core_service.rpc.audit_filters import fitting, uids_seen
from core_service.rpc.audit_log import AuditQueries
from core_service.rpc.sight import sees

if TYPE_CHECKING:
    from core_service.client import Client
    from core_service.core import Core
    from dataspace.record import Record

WATCHES: Final = 4  # of one client
PART: Final = 500  # events or records taken at once
AT_ONCE: Final = 256  # records made before others have their turns


@contextmanager
def counted(client: Client) -> Iterator[None]:
    """One more watch of a client. Raises Refusal OUT_OF_CAPS."""
    if client.watches >= WATCHES:
        why = f"a client has {WATCHES} watches at most"
        raise Refusal("OUT_OF_CAPS", why, asked=1, used=client.watches, limit=WATCHES)
    client.watches += 1
    try:
        yield
    finally:
        client.watches -= 1


class Watcher:
    """One call. `_at` is the last event that its client knows of, or need not."""

    def __init__(self, core: Core, client: Client, after: int) -> None:
        self._core = core
        self._client = client
        self._log = AuditQueries(core, client)
        self._uids = uids_seen(client, None)
        self._at = after

    async def messages(self) -> AsyncGenerator[pb.WatchResponse, None]:
        """Until core stops. Raises Refusal COMPACTED, INVALID_ARGUMENT, AUDIT_FAILURE."""
        if not self._at:
            for message in await self._snapshot():
                yield message
        await self._must_exist()
        while self._at + 1 < self._core.news.first:
            for message in await self._past():
                yield message
        while True:
            try:
                news = await self._core.news.after(self._at)
            except LaggedError:
                first = self._at + 1
                snapshot = await self._snapshot()
                yield pb.WatchResponse(lagged=pb.Lagged(first=first, last=self._at))
                for message in snapshot:
                    yield message
                continue
            if not news:
                return
            for committed in news:
                self._at = committed.event.revision
                if self._uids is None or not self._uids.isdisjoint(committed.uids):
                    yield pb.WatchResponse(event=convert.event(committed.event, committed.hash))

    async def _must_exist(self) -> None:
        latest = self._core.ledger.revision
        if self._at > latest:
            raise invalid("after_revision", self._at, f"at most {latest}, the latest event")
        await self._log.must_have(self._at)

    async def _past(self) -> Iterator[pb.WatchResponse]:
        """The next events that are not new any more."""
        last = self._core.news.last
        only = EventFilter(uids=self._uids)
        found = await self._log.events(self._at, PART, only)
        latest = found[-1].event.revision if found else 0
        self._at = latest if len(found) == PART else max(latest, last)
        return (pb.WatchResponse(event=convert.event(*recorded)) for recorded in found)

    async def _snapshot(self) -> Iterator[pb.WatchResponse]:
        """What lives at one revision, once that is on disk. Messages are made as they are sent.

        Records are made in turns: then to have them all at once takes little more than to list them.
        """
        for number, _ in enumerate(self._living(), 1):
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        self._at = revision = self._core.ledger.revision
        records = [record for _, record in self._living()]
        await self._core.audit.recorded(revision)
        return self._parts(revision, records)

    def _living(self) -> Iterator[tuple[int, Record]]:
        return self._core.ledger.created_after(
            0, shown=lambda holder: sees(self._client, uid_of(holder)), gone=False
        )

    def _parts(self, revision: int, records: list[Record]) -> Iterator[pb.WatchResponse]:
        start = 0
        while True:
            part = [
                convert.record(record, *self._core.measured(record.name))
                for record in records[start : start + PART]
            ]
            part = part[: fitting(part)]
            start += len(part)
            more = start < len(records)
            yield pb.WatchResponse(snapshot=pb.Snapshot(revision=revision, records=part, more=more))
            if not more:
                return
