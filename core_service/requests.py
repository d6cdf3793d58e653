"""Idempotency: what a client's request ids were answered with."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, Final, NamedTuple, Protocol, TypeVar, cast

from core_service.kept import Kept
from core_service.kept import request as kept_request
from core_service.refusal import Refusal, invalid

REMEMBERED: Final = 256
REMEMBERED_BYTES: Final = 4 << 20  # of answers; gRPC lets none through that is larger
REQUEST_ID_LIMIT: Final = 64

Key = tuple[str, str]  # the method's request type, the request id


class Mutation(Protocol):
    """A request that carries an idempotency key."""

    request_id: str

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes: ...  # noqa: N802


class Sized(Protocol):
    """An answer."""

    def ByteSize(self) -> int: ...  # noqa: N802


Answer = TypeVar("Answer", bound=Sized)


class First(NamedTuple):
    """The first request of an id, by the digest of what it asked, and its answer. `attempt` names it, no
    other request of this core, and none of this id that came before and was forgotten."""

    digest: bytes
    attempt: str
    answer: asyncio.Future[Any]


class Requests:
    """The requests of one client that are under way, and the latest that were answered."""

    def __init__(self, owner: str = "", kept: Kept | None = None) -> None:
        """`owner` is the client's name, under which its answers outlive core in `kept`."""
        self._owner = owner
        self._kept = kept or Kept()
        self._under_way: dict[Key, First] = {}
        self._answered: OrderedDict[Key, First] = OrderedDict()
        self._bytes = 0
        self._attempts = count(1)

    def first(
        self, request: Mutation, begin: Callable[[], asyncio.Future[Answer]]
    ) -> asyncio.Future[Answer]:
        """The answer to the first request of this id; `begin` starts it if this is the first.

        Raises Refusal INVALID_ARGUMENT, REQUEST_ID_REUSED.
        """
        if len(request.request_id) > REQUEST_ID_LIMIT:
            raise invalid(
                "request_id", request.request_id, f"at most {REQUEST_ID_LIMIT} characters"
            )
        key = (type(request).__name__, request.request_id)
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        first = self._under_way.get(key) or self._answered.get(key)
        if first is None:
            attempt = f"{self._key(key)}#{next(self._attempts)}"
            first = self._under_way[key] = First(digest, attempt, self._begin(attempt, begin))
            first.answer.add_done_callback(partial(self._done, key))
        if first.digest != digest:
            raise Refusal(
                "REQUEST_ID_REUSED",
                f"request id {request.request_id!r} was used with another request",
                name=request.request_id,
            )
        return cast("asyncio.Future[Answer]", first.answer)

    def _done(self, key: Key, answer: asyncio.Future[Any]) -> None:
        """A refusal leaves nothing behind, so the same request may succeed later."""
        first = self._under_way.pop(key)
        if answer.cancelled() or answer.exception():
            self._kept.over(first.attempt)
            return
        self._kept.answered(self._key(key), first.attempt, first.digest, answer.result())
        self._remember(key, first)

    def resume(self, key: Key, digest: bytes, answer: Any) -> None:
        """An answer that an earlier core gave."""
        given: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        given.set_result(answer)
        self._remember(key, First(digest, "", given))

    def forget(self) -> None:
        """The client ended."""
        for key in self._answered:
            self._kept.forgotten(self._key(key))

    def _remember(self, key: Key, first: First) -> None:
        self._answered[key] = first
        self._bytes += first.answer.result().ByteSize()
        while len(self._answered) > REMEMBERED or self._bytes > REMEMBERED_BYTES:
            oldest, its = self._answered.popitem(last=False)
            self._bytes -= its.answer.result().ByteSize()
            self._kept.forgotten(self._key(oldest))

    def _begin(
        self, attempt: str, begin: Callable[[], asyncio.Future[Answer]]
    ) -> asyncio.Future[Answer]:
        """Its task knows for whom it works: what it makes is known by that until it is answered."""
        self._kept.begun(attempt)
        before = kept_request.set(attempt)
        try:
            return begin()
        except BaseException:
            self._kept.over(attempt)
            raise
        finally:
            kept_request.reset(before)

    def _key(self, key: Key) -> str:
        return f"{self._owner}:{key[0]}:{key[1]}"
