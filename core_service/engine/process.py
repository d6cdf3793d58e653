"""An engine process: one per session, from its start until it is reaped."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from core_service.engine import protocol
from core_service.engine.channel import Channel
from core_service.engine.protocol import (
    CHANNEL_FD,
    EXECUTABLE,
    WRITABLE,
    Exit,
    Hello,
    MalformedPacketError,
    Response,
    Status,
    Transport,
    Type,
)
from core_service.refusal import Refusal

if TYPE_CHECKING:
    from dataspace.attachments import Attachment
    from dataspace.memory import Memory

log = structlog.get_logger()

ANSWER_LIMIT: Final = 10.0  # seconds; an engine that does not answer within is ended

REASONS: Final = {
    Status.NO_VCPU: "NOT_FOUND",
    Status.EXISTS: "ALREADY_EXISTS",
    Status.NOT_STOPPED: "NOT_STOPPED",
    Status.MID_INSTRUCTION: "MID_INSTRUCTION",
    Status.LIMIT: "ENGINE_LIMIT",
    Status.KERNEL: "MEMORY_FAILURE",
    Status.UNSUPPORTED: "ENGINE_LIMIT",
    Status.BAD_MESSAGE: "INVALID_ARGUMENT",
}


class EngineFailedError(Exception):
    """The engine did not start; the text says why and what to do."""


class EngineProcess:
    """Owns the process, its pidfd and the channel. `died` tells why it ended of itself."""

    hello: Hello

    def __init__(
        self, name: str, pid: int, pidfd: int, connection: socket.socket, stop_limit: float
    ) -> None:
        self.name = name
        self.pid = pid
        self.died: str | None = None
        self.on_exit: Callable[[int, bytes], None] = lambda index, half: None
        self.on_end: Callable[[str], None] = lambda why: None
        self.on_reaped: Callable[[], None] = lambda: None
        self._pidfd = pidfd
        self._stop_limit = stop_limit
        self._stopping = False
        self._last_word = ""
        self._numbers = itertools.count(1)
        self._requests: dict[int, asyncio.Future[bytes | Response]] = {}
        self._exits_due: Counter[int] = Counter()
        loop = asyncio.get_running_loop()
        self._greeting: asyncio.Future[Hello] = loop.create_future()
        self._reaped: asyncio.Future[None] = loop.create_future()
        self._channel = Channel(connection, self._packet_arrived, self._channel_lost)
        loop.add_reader(pidfd, self._process_ended)

    @classmethod
    def spawn(
        cls, name: str, executable: Path, environment: dict[str, str], stop_limit: float
    ) -> EngineProcess:
        """Start an engine. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                pid = _spawn(executable, environment, theirs.fileno())
                pidfd = _open_pidfd(pid)
            except BaseException:
                ours.close()
                raise
        return cls(name, pid, pidfd, ours, stop_limit)

    @property
    def running(self) -> bool:
        """Whether the process was not reaped yet."""
        return not self._reaped.done()

    async def greet(self, limit: float) -> None:
        """Wait for the engine's hello, at most `limit` seconds. Raises EngineFailedError."""
        try:
            async with asyncio.timeout(limit):
                self.hello = await self._greeting
        except TimeoutError:
            raise EngineFailedError(f"it did not start within {limit:g} s") from None

    async def stop(self) -> None:
        """End the process, and wait until it is gone: the channel's end tells it, SIGKILL insists."""
        self._stopping = True
        self._channel.close()
        self._fail_requests("the session ended")
        try:
            async with asyncio.timeout(self._stop_limit):
                await asyncio.shield(self._reaped)
        except TimeoutError:
            log.warning("engine does not stop", engine=self.name, pid=self.pid)
            self._kill()
            await self._reaped

    # -- requests; each raises Refusal, with ENGINE_DIED if the engine ends before it answers

    async def create_vcpu(self, index: int, page: Memory | None) -> None:
        """Create a vCPU, with a page for the page transport, without for the stream transport."""
        transport = Transport.STREAM if page is None else Transport.PAGE
        fd = None if page is None else page.open(writable=True)
        await self._ask(
            lambda number: protocol.vcpu_packet(Type.CREATE_VCPU, number, index, transport), fd
        )

    async def map(self, memory: Memory, attachment: Attachment) -> None:
        """Map a part of a dataspace into the guest."""
        flags = WRITABLE * attachment.writable | EXECUTABLE * attachment.executable
        await self._ask(
            lambda number: protocol.range_packet(
                Type.MAP, number, attachment.gpa, attachment.size, attachment.offset, flags
            ),
            memory.open(attachment.writable),
        )

    async def unmap(self, gpa: int, size: int) -> None:
        """Unmap exactly a range. The dataspace's pages are gone from the engine when it returns."""
        await self._insist(
            lambda number: protocol.range_packet(Type.UNMAP, number, gpa, size), "unmap memory"
        )

    async def written(self, gpa: int, size: int) -> None:
        """Guest memory was written from outside."""
        await self._insist(
            lambda number: protocol.range_packet(Type.WRITTEN, number, gpa, size),
            "take note of written memory",
        )

    async def run(self, index: int, exit_seq: int, half: bytes) -> None:
        """Run a vCPU that is stopped at `exit_seq` (0: wherever), with a reply."""
        self._exits_due[index] += 1
        await self._ask(lambda number: protocol.run_packet(Type.RUN, number, index, exit_seq, half))

    async def pause(self, index: int) -> None:
        """Ask for EXIT_PAUSED."""
        await self._ask(lambda number: protocol.vcpu_packet(Type.PAUSE, number, index))

    async def window(self, index: int) -> None:
        """Ask for EXIT_WINDOW."""
        await self._ask(lambda number: protocol.vcpu_packet(Type.WINDOW, number, index))

    async def get_state(self, index: int, wanted: bytes) -> bytes:
        """The engine's half with the registers that the VMM's half `wanted` asks for."""
        answer = await self._ask(
            lambda number: protocol.run_packet(Type.GET_STATE, number, index, 0, wanted)
        )
        if isinstance(answer, Response):
            self._end_of_trust("it answered a question for state with none")
            raise self._death()
        return answer

    async def set_state(self, index: int, charged: bytes) -> None:
        """Write the charged registers of a VMM's half."""
        await self._ask(
            lambda number: protocol.run_packet(Type.SET_STATE, number, index, 0, charged)
        )

    async def _ask(self, packet: Callable[[int], bytes], fd: int | None = None) -> bytes | Response:
        if not self.running or self._stopping or self.died:
            if fd is not None:
                os.close(fd)
            raise self._death()
        number = next(self._numbers) & 0xFFFFFFFF or next(self._numbers) & 0xFFFFFFFF
        answer: asyncio.Future[bytes | Response] = asyncio.get_running_loop().create_future()
        self._requests[number] = answer
        # both outlive a caller that is cancelled: the engine owes the answer all the same
        limit = asyncio.get_running_loop().call_later(ANSWER_LIMIT, self._unanswered)
        answer.add_done_callback(lambda _: limit.cancel())
        self._channel.send(packet(number), fd)
        result = await asyncio.shield(answer)
        if isinstance(result, Response) and result.status != Status.OK:
            raise self._refusal(result)
        return result

    async def _insist(self, packet: Callable[[int], bytes], deed: str) -> None:
        """Ask for what an engine that works never refuses; one that does is ended."""
        try:
            await self._ask(packet)
        except Refusal as refusal:
            if refusal.reason == "ENGINE_DIED":
                raise
            self._end_of_trust(f"it did not {deed}: {refusal}")
            raise self._death() from refusal

    def _unanswered(self) -> None:
        self._end_of_trust(f"it did not answer within {ANSWER_LIMIT:g} s")
        self._fail_requests(self._last_word)

    def _refusal(self, response: Response) -> Refusal:
        reason = REASONS[response.status]
        return Refusal(reason, f"engine {self.name}: {response.text}", errno=response.error)

    def _death(self) -> Refusal:
        why = self.died or self._last_word or "the session ended"
        return Refusal("ENGINE_DIED", f"engine {self.name}: {why}", why=why)

    # -- what the engine says

    def _packet_arrived(self, packet: bytes) -> None:
        try:
            self._take(packet)
        except MalformedPacketError as error:
            self._end_of_trust(f"it sent a malformed packet: {error}")

    def _take(self, packet: bytes) -> None:
        kind, number = protocol.header(packet)
        if kind == Type.EXIT:
            self._take_exit(protocol.parse_exit(packet))
        elif kind == Type.RESPONSE:
            self._answer(number, protocol.parse_response(packet))
        elif kind == Type.STATE:
            self._answer(number, protocol.parse_exit(packet).half)
        elif kind == Type.FAILED and not self._last_word:
            self._last_word = protocol.parse_response(packet).text or "it failed"
        elif kind == Type.HELLO and not self._greeting.done():
            self._greeting.set_result(protocol.parse_hello(packet))
        else:
            raise MalformedPacketError(f"type {kind}")

    def _take_exit(self, arrived: Exit) -> None:
        """A vCPU exits once for each run: an engine that could exit at will would keep core busy."""
        if not self._exits_due[arrived.index]:
            raise MalformedPacketError(f"an exit of vCPU {arrived.index}, which does not run")
        self._exits_due[arrived.index] -= 1
        self.on_exit(arrived.index, arrived.half)

    def _answer(self, number: int, answer: bytes | Response) -> None:
        waiting = self._requests.pop(number, None)
        if waiting is None:
            raise MalformedPacketError(f"an answer to request {number}, which nobody made")
        if not waiting.done():
            waiting.set_result(answer)

    # -- the end

    def _end_of_trust(self, why: str) -> None:
        """The engine misbehaves: it ends, and its session alone."""
        self._last_word = self._last_word or why
        self._kill()

    def _kill(self) -> None:
        if self.running:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _channel_lost(self) -> None:
        """The process is ending, or closed its channel to stay: it must end."""
        asyncio.get_running_loop().call_later(1.0, self._kill)

    def _process_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        if not self._stopping:
            self._channel.drain()  # which may kill: the pidfd names a process until it is reaped
        _, status = os.waitpid(self.pid, 0)
        os.close(self._pidfd)
        if not self._stopping:
            self.died = self._last_word or _describe(status)
        self._channel.close()
        self._fail_requests(self.died or "the session ended")
        if not self._greeting.done():
            self._greeting.set_exception(EngineFailedError(self.died or _describe(status)))
            self._greeting.exception()  # seen, also when nobody waits for it
        self._reaped.set_result(None)
        self.on_reaped()
        if not self._stopping:
            self.on_end(self.died or "")

    def _fail_requests(self, why: str) -> None:
        for answer in self._requests.values():
            if not answer.done():
                answer.set_exception(Refusal("ENGINE_DIED", f"engine {self.name}: {why}", why=why))
                answer.exception()  # seen, also when its caller was cancelled
        self._requests.clear()


def _spawn(executable: Path, environment: dict[str, str], channel: int) -> int:
    """A session of its own, so that a terminal's signals do not reach it; what it prints goes to core's
    log."""
    return os.posix_spawn(
        executable,
        [executable.name],
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, 2, 1),
            (os.POSIX_SPAWN_DUP2, channel, CHANNEL_FD),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM],
    )


def _open_pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def _describe(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"killed by signal {number} ({signal.strsignal(number)})"
    return f"ended with status {os.WEXITSTATUS(status)}"
