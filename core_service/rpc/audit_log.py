"""Questions to the log on disk, for the servicer: in threads, a few at once for each user."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from core_service.audit import AuditError, AuditFailure, Query, Recorded
from core_service.audit.query import EventFilter, RecordFilter
from core_service.refusal import Refusal

if TYPE_CHECKING:
    from core_service.client import Client
    from core_service.core import Core

P = ParamSpec("P")
Answer = TypeVar("Answer")


class AuditQueries:
    """What the log tells one client; nothing here looks at who may see it."""

    def __init__(self, core: Core, client: Client) -> None:
        self.query = Query(core.audit.directory)
        self._core = core
        self._client = client

    async def latest(
        self, ask: Callable[P, Answer], *arguments: P.args, **named: P.kwargs
    ) -> Answer:
        """Ask when everything so far is on disk, or cannot be. Raises Refusal AUDIT_FAILURE."""
        await self.settled()
        return await self.now(ask, *arguments, **named)

    async def settled(self) -> None:
        """Return when everything so far is on disk, or cannot be."""
        with suppress(AuditFailure):
            await self._core.everything_recorded()

    async def now(self, ask: Callable[P, Answer], *arguments: P.args, **named: P.kwargs) -> Answer:
        """Ask for what is on disk. Raises Refusal AUDIT_FAILURE."""
        question = partial(ask, *arguments, **named)
        try:
            return await self._core.readers.run(self._client.identity.uid, question)
        except AuditError as error:
            raise Refusal(
                "AUDIT_FAILURE", f"the audit log cannot be read: {error.why}", why=error.why
            ) from error

    async def events(self, after: int, limit: int, only: EventFilter) -> list[Recorded]:
        """What is on disk of the events later than `after`: of all of them, so it is asked afterwards
        whether retention took any away meanwhile. Raises Refusal COMPACTED, AUDIT_FAILURE."""
        found = await self.now(self.query.events, after, limit, only)
        if after:
            await self.must_have(after)
        return found

    async def began_earlier(self, name: str, uids: Collection[int] | None) -> bool:
        """Whether retention removed the first event of an object of these users, of which there is still
        a record. Raises Refusal AUDIT_FAILURE."""
        only = RecordFilter(kinds=(), uids=uids, name=name)
        lives = await self.now(self.query.records, 0, 2, only)  # a vCPU, and its page
        oldest = await self.now(self.query.oldest_revision)
        return any(life.revision < oldest for life in lives)

    async def must_have(self, after: int) -> None:
        """Raises Refusal COMPACTED where retention removed what follows an event."""
        oldest = await self.now(self.query.oldest_revision)
        if after + 1 < oldest:
            raise Refusal(
                "COMPACTED",
                f"event {after + 1} was removed by retention; the oldest is {oldest}",
                asked=after + 1,
                oldest=oldest,
            )
