"""A vCPU as core sees it: its page, or the stream that serves it. Core is on no exit path of the
page transport; the engine keeps the vCPU's state, and answers whether it runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from core_service.engine.protocol import Exit, MalformedPacketError
from core_service.refusal import Refusal
from dataspace.vcpu_page import EXIT_SEQ_AT, FPU_BYTES, FPU_SIZE_AT, EngineHalf

if TYPE_CHECKING:
    from core_service.dataspaces import Dataspace


class Vcpu:
    """One vCPU. `page` is None with the stream transport; `wanted` is the mask of registers that its
    stream asked to see."""

    def __init__(self, name: str, index: int, page: Dataspace | None) -> None:
        self.name = name
        self.index = index
        self.page = page
        self.wanted = (0, 0)
        self.exits = Exits(name)
        self.unclaimed = False

    @property
    def fpu_size(self) -> int:
        """Bytes of the FPU area that its engine moves; 0 where there is none, or before STARTUP. A page
        is its VMM's to write, too: what it makes of its own size hurts nobody else."""
        if self.page is None:
            return EngineHalf(self.exits.last.half).fpu_size if self.exits.last else 0
        return min(self._word(self.page, FPU_SIZE_AT), FPU_BYTES)

    @property
    def exit_count(self) -> int:
        """Exits so far, modulo 2^32; as little to be trusted."""
        if self.page is None:
            return EngineHalf(self.exits.last.half).exit_seq if self.exits.last else 0
        return self._word(self.page, EXIT_SEQ_AT)

    @staticmethod
    def _word(page: Dataspace, offset: int) -> int:
        return int.from_bytes(page.memory.read(offset, 4), "little")


class Exits:
    """The exits of a vCPU with the stream transport: the last one, whether the vCPU stands there, and
    the stream that serves it."""

    def __init__(self, vcpu: str) -> None:
        self.vcpu = vcpu
        self.last: Exit | None = None
        self.ended: str | None = None
        self.served_by: ExitStream | None = None
        self.moved = asyncio.Event()
        self._due = 0
        self._settling = False

    def adopt(self) -> None:
        """The vCPU ran under earlier cores: until `settled`, what comes may be what the engine owes
        them, some of it twice. Its exits come before its answer to where the vCPU stands."""
        self._settling = True

    def runs(self) -> None:
        """The engine says that it runs: what came so far, it has left. One that exited just then shows
        when the engine is asked again."""
        self._due = 1

    def settled(self) -> None:
        """The engine said where the vCPU stands; from now on it exits when it was run."""
        self._settling = False
        self.moved.set()

    def run_asked(self) -> None:
        """The engine is asked to run the vCPU: until it refuses, the vCPU has left its last exit."""
        self._due += 1

    def run_refused(self) -> None:
        """It did not."""
        self._due -= 1
        self.moved.set()

    def publish(self, arrived: Exit) -> None:
        """The engine sent an exit. Raises MalformedPacketError for one that nobody ran for: an engine
        that could exit at will would keep core busy."""
        if not self._due and not self._settling:
            raise MalformedPacketError(f"an exit of {self.vcpu}, which does not run")
        self._due = max(self._due - 1, 0)
        self.last = arrived
        self.moved.set()

    def end(self, why: str) -> None:
        """The session ends: so does whoever waits."""
        self.ended = why
        self.moved.set()

    def serve(self) -> ExitStream:
        """A new stream takes over, and sees the exit at which the vCPU is stopped first."""
        self.served_by = ExitStream(self)
        self.moved.set()
        return self.served_by

    @property
    def standing(self) -> Exit | None:
        """The exit at which the vCPU is stopped."""
        return None if self._due else self.last


class ExitStream:
    """What one HandleExits call sees of a vCPU's exits, until another takes over."""

    def __init__(self, exits: Exits) -> None:
        self._exits = exits
        self._sent: Exit | None = None

    def must_serve(self) -> None:
        """Raises Refusal TAKEN_OVER."""
        if self._exits.served_by is not self:
            name = self._exits.vcpu
            raise Refusal("TAKEN_OVER", f"another stream serves {name} now", name=name)

    async def next(self) -> Exit | None:
        """The next exit; None when the session ended in an orderly way.

        Raises Refusal TAKEN_OVER, ENGINE_DIED.
        """
        exits = self._exits
        while exits.ended is None:
            self.must_serve()
            if exits.standing is not self._sent and exits.standing:
                self._sent = exits.standing
                return self._sent
            exits.moved.clear()
            await exits.moved.wait()
        if exits.ended:
            raise Refusal("ENGINE_DIED", exits.ended, why=exits.ended)
        return None
