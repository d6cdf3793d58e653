"""The requests to an engine that are not answered yet."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

from core_service.engine.protocol import (
    Cpuid,
    Exit,
    MalformedPacketError,
    Mappings,
    Response,
    Status,
)

LATE_ANSWERS: Final = 4096
"""What an engine can owe to an earlier core at most, by far."""

Answer = TypeVar("Answer", Response, Exit, Cpuid, Mappings)


class Request(NamedTuple):
    """`kind` is what success is answered with. `refused` is called at once when the answer is a refusal,
    before what follows it on the channel is looked at."""

    kind: type[Response | Exit | Cpuid | Mappings]
    refused: Callable[[], None]
    answer: asyncio.Future[Any]


class Pending:
    """Requests by number. `unanswered` is called when one of them waited for `limit` seconds. With
    `late` the engine had requests of an earlier core, and may answer them still: numbers begin
    elsewhere."""

    def __init__(self, unanswered: Callable[[], None], *, late: bool = False) -> None:
        self._unanswered = unanswered
        self._late = LATE_ANSWERS if late else 0
        self._numbers = itertools.count(secrets.randbits(32) if late else 1)
        self._requests: dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def add(
        self, kind: type[Answer], refused: Callable[[], None], limit: float
    ) -> tuple[int, asyncio.Future[Answer]]:
        """A number, and the answer to come. Both outlive a caller that is cancelled: the engine owes the
        answer all the same."""
        loop = asyncio.get_running_loop()
        number = next(self._numbers) & 0xFFFFFFFF or next(self._numbers) & 0xFFFFFFFF
        answer: asyncio.Future[Answer] = loop.create_future()
        self._requests[number] = Request(kind, refused, answer)
        timer = loop.call_later(limit, self._unanswered)
        answer.add_done_callback(lambda _: timer.cancel())
        return number, answer

    def answer(self, number: int, answer: Response | Exit | Cpuid | Mappings) -> None:
        """The engine answered. Raises MalformedPacketError for what answers nothing."""
        request = self._requests.get(number)
        if request is None and self._late:
            self._late -= 1
            return
        if request is None:
            raise MalformedPacketError(f"an answer to request {number}, which nobody made")
        refused = isinstance(answer, Response) and answer.status != Status.OK
        if not refused and not isinstance(answer, request.kind):
            told, wanted = type(answer).__name__, request.kind.__name__
            raise MalformedPacketError(f"{told} in answer to a request for {wanted}")
        del self._requests[number]
        if refused:
            request.refused()
        if not request.answer.done():
            request.answer.set_result(answer)

    def drop(self, number: int, error: Exception) -> None:
        """A request that did not reach the engine, unless all failed meanwhile."""
        if request := self._requests.pop(number, None):
            _fail(request, error)

    def fail(self, error: Callable[[], Exception]) -> None:
        """No more answers will come."""
        for request in self._requests.values():
            _fail(request, error())
        self._requests.clear()


def _fail(request: Request, error: Exception) -> None:
    if not request.answer.done():
        request.answer.set_exception(error)
        request.answer.exception()  # seen, also when its caller was cancelled
