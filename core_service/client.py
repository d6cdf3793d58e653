"""A client: one VMM process, what it owns, and the lease that keeps it alive."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from core_service.kept import Kept
from core_service.policy import Sight
from core_service.refusal import Refusal
from core_service.requests import Answer, Mutation, Requests
from dataspace.quota import Account

if TYPE_CHECKING:
    from core_service.dataspaces import Dataspace
    from core_service.identity import Identity
    from core_service.session import Session

REMEMBERED_DEATHS: Final = 64
TRANSFERS_AT_ONCE: Final = 8

Made = TypeVar("Made")


class Client:
    """Owns sessions and dataspaces. Lives while a lease (fd channel, KeepAlive) is open, and `grace`
    seconds longer; the end of its process ends it at once."""

    def __init__(  # noqa: PLR0913, PLR0917 - what a client is known by
        self,
        name: str,
        identity: Identity,
        account: Account,
        grace: float,
        ended: Callable[[Client, str], None],
        kept: Kept | None = None,
    ) -> None:
        self.name = name
        self.on_record = False
        self.late = False
        self.identity = identity
        self.account = account
        self.sessions: dict[str, Session] = {}
        self.dataspaces: dict[str, Dataspace] = {}
        self.sight = Sight()
        self.rom_paths: tuple[Path, ...] = ()
        self.connections = 0
        self.reclaimed = False
        self.transfers = asyncio.Semaphore(TRANSFERS_AT_ONCE)
        self.copying = asyncio.Lock()
        self.watches = 0
        self._grace = grace
        self._ended = ended
        self._leases = 0
        self._timer: asyncio.TimerHandle | None = None
        self.requests = Requests(name, kept)
        self._mutations: set[asyncio.Future[Any]] = set()
        self._deaths: OrderedDict[str, str] = OrderedDict()
        self._start_grace()

    def hold(self) -> None:
        """A lease opens."""
        self._leases += 1
        self._stop_grace()

    def release(self) -> None:
        """A lease closes; without another the grace period starts."""
        self._leases -= 1
        if not self._leases and not self.reclaimed:
            self._start_grace()

    def end(self, cause: str) -> None:
        """Reclaim everything, for `cause`. Calling it again does nothing."""
        if self.reclaimed:
            return
        self.reclaimed = True
        self._stop_grace()
        self._ended(self, cause)

    def _start_grace(self) -> None:
        self._stop_grace()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._grace, self._grace_is_over)

    def _grace_is_over(self) -> None:
        owns_nothing = not self.sessions and not self.dataspaces
        if owns_nothing and self.connections:
            self._start_grace()
        else:
            self.end("lease ended")

    def _stop_grace(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def must_live(self) -> None:
        """Refuse what a client asks after it was reclaimed: it would never be freed."""
        if self.reclaimed:
            raise Refusal("SHUTTING_DOWN", "this client's lease ended; connect again")

    def session_died(self, name: str, why: str) -> None:
        """Remember why a session is gone, so that its name answers ENGINE_DIED."""
        self._deaths[name] = why
        if len(self._deaths) > REMEMBERED_DEATHS:
            self._deaths.popitem(last=False)

    def death_of(self, session: str) -> str | None:
        """Why a session of this client died, if it did."""
        return self._deaths.get(session)

    async def once(self, request: Mutation, make: Callable[[], Awaitable[Answer]]) -> Answer:
        """Carry out a mutation, whole. A `request_id` seen before gives the first answer."""
        if not request.request_id:
            return await self.whole(make)
        answer = self.requests.first(request, lambda: self._begin(make))
        return await asyncio.shield(answer)

    async def whole(self, make: Callable[[], Awaitable[Made]]) -> Made:
        """Carry out a mutation to its end, whatever becomes of the call that asked for it: cancelled
        or not, it is whole or leaves nothing."""
        return await asyncio.shield(self._begin(make))

    @property
    def busy(self) -> bool:
        """Whether a mutation is under way."""
        return bool(self._mutations)

    async def settled(self) -> None:
        """Wait until no mutation of this client is under way."""
        while self._mutations:
            await asyncio.wait(self._mutations)

    def _begin(self, make: Callable[[], Awaitable[Made]]) -> asyncio.Future[Made]:
        self.must_live()
        mutation = asyncio.ensure_future(make())
        self._mutations.add(mutation)
        mutation.add_done_callback(self._mutation_done)
        return mutation

    def _mutation_done(self, mutation: asyncio.Future[Any]) -> None:
        self._mutations.discard(mutation)
        if not mutation.cancelled():
            mutation.exception()  # seen: the caller may have gone meanwhile
