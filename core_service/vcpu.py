"""A vCPU as core sees it: its page, or the stream that serves it. Core is on no exit path of the
page transport; the engine keeps the vCPU's state, and answers whether it runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from core_service.engine.protocol import MalformedPacketError
from core_service.refusal import Refusal
from dataspace.vcpu_page import EngineHalf, Injection, Reason

if TYPE_CHECKING:
    from core_service.dataspaces import Dataspace

REASONS: Final = frozenset(Reason)
INJECTIONS: Final = frozenset(Injection)


class Vcpu:
    """One vCPU. `page` is None with the stream transport; `wanted` is the mask of registers that its
    stream asked to see."""

    def __init__(self, name: str, index: int, page: Dataspace | None) -> None:
        self.name = name
        self.index = index
        self.page = page
        self.wanted = (0, 0)
        self.stream = ExitStream(name)


class ExitStream:
    """The exits of a vCPU with the stream transport: the last one, and who waits for the next."""

    def __init__(self, vcpu: str) -> None:
        self._vcpu = vcpu
        self._last: EngineHalf | None = None
        self._sent = 0
        self._moved = asyncio.Event()
        self._ended: str | None = None
        self._served = False

    def publish(self, half: bytes) -> None:
        """The engine sent an exit. Raises MalformedPacketError for one that there is not."""
        arrived = EngineHalf(half)
        if arrived.reason not in REASONS or arrived.injection not in INJECTIONS:
            raise MalformedPacketError(
                f"an exit with reason {arrived.reason}, injection result {arrived.injection}"
            )
        self._last = arrived
        self._moved.set()

    def end(self, why: str) -> None:
        """The session ends: so does whoever waits."""
        self._ended = why
        self._moved.set()

    def serve(self) -> None:
        """A stream takes over: it sees the last exit first. Raises Refusal ALREADY_EXISTS."""
        if self._served:
            raise Refusal("ALREADY_EXISTS", f"another stream serves {self._vcpu}", name=self._vcpu)
        self._served = True
        self._sent = 0

    def leave(self) -> None:
        """The stream is gone."""
        self._served = False

    async def next(self) -> EngineHalf | None:
        """The next exit; None when the session ended in an orderly way.

        Raises Refusal ENGINE_DIED.
        """
        while self._ended is None:
            if self._last and self._last.exit_seq != self._sent:
                self._sent = self._last.exit_seq
                return self._last
            self._moved.clear()
            await self._moved.wait()
        if self._ended:
            raise Refusal("ENGINE_DIED", self._ended, why=self._ended)
        return None
