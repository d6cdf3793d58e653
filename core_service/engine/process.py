"""An engine process: one per session, from its start until it is reaped."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from core_service.engine import protocol
from core_service.engine.channel import Channel
from core_service.engine.listing import listed
from core_service.engine.pending import Answer, Pending
from core_service.engine.protocol import (
    EXECUTABLE,
    WRITABLE,
    Capability,
    Cpuid,
    CpuidLeaf,
    Exit,
    Hello,
    MalformedPacketError,
    Mapping,
    Mappings,
    MsrRange,
    Response,
    Status,
    Transport,
    Type,
)
from core_service.engine.spawn import open_pidfd, reap, spawn
from core_service.engine.threads import run_times
from core_service.engine.trust import check_exit, check_registers
from core_service.refusal import Refusal
from dataspace.vcpu_page import EngineHalf

if TYPE_CHECKING:
    from core_service.cgroups import Cgroup
    from dataspace.attachments import Attachment
    from dataspace.view import View

log = structlog.get_logger()

ANSWER_LIMIT: Final = 10.0  # seconds; an engine that does not answer within is ended
REQUESTS_LIMIT: Final = 256  # that an engine owes answers to; its vCPUs' VMMs need a few each

REASONS: Final = {
    Status.NO_VCPU: "NOT_FOUND",
    Status.EXISTS: "ALREADY_EXISTS",
    Status.NOT_STOPPED: "NOT_STOPPED",
    Status.MID_INSTRUCTION: "MID_INSTRUCTION",
    Status.LIMIT: "ENGINE_LIMIT",
    Status.KERNEL: "MEMORY_FAILURE",
    Status.UNSUPPORTED: "ENGINE_LIMIT",
    Status.BAD_MESSAGE: "INVALID_ARGUMENT",
    Status.STARTED: "ALREADY_STARTED",
}


def nothing() -> None:
    """Whom an engine's refusal does not concern."""


class EngineFailedError(Exception):
    """The engine did not start; the text says why and what to do."""


class EngineProcess:
    """Owns the process, its pidfd, its cgroup and the channel. `died` tells why it ended of itself."""

    hello: Hello

    def __init__(  # noqa: PLR0913, PLR0917 - what a process is known by
        self,
        name: str,
        pid: int,
        pidfd: int,
        connection: socket.socket,
        stop_limit: float,
        greeting: str = "",
        cgroup: Cgroup | None = None,
    ) -> None:
        """`greeting` is the hello of an engine that an earlier core started."""
        self.name = name
        self.pid = pid
        self.adopted = bool(greeting)
        self.greeting_hex = greeting
        self.died: str | None = None
        self.on_exit: Callable[[Exit], None] = lambda arrived: None
        self.on_end: Callable[[str], None] = lambda why: None
        self.on_reaped: Callable[[], None] = lambda: None
        self._pidfd = pidfd
        self._stop_limit = stop_limit
        self._stopping = False
        self._last_word = ""
        self._cgroup = cgroup
        self._removal: asyncio.Task[None] | None = None
        self._pending = Pending(self._unanswered, late=self.adopted)
        loop = asyncio.get_running_loop()
        self._greeting: asyncio.Future[Hello] = loop.create_future()
        self._reaped: asyncio.Future[None] = loop.create_future()
        self._channel = Channel(connection, self._packet_arrived, self._channel_lost, self._unsent)
        loop.add_reader(pidfd, self._process_ended)
        if greeting:
            self.hello = protocol.parse_hello(bytes.fromhex(greeting))
            self._greeting.set_result(self.hello)

    @property
    def descriptors(self) -> tuple[int, int]:
        """Our end of the channel, and the pidfd."""
        return self._channel.descriptor, self._pidfd

    @classmethod
    def spawn(
        cls,
        name: str,
        executable: Path,
        environment: dict[str, str],
        stop_limit: float,
        cgroup: Cgroup | None = None,
    ) -> EngineProcess:
        """Start an engine. Raises OSError; then the cgroup is the caller's still."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                pid = spawn(executable, environment, theirs.fileno(), cgroup)
                pidfd = open_pidfd(pid)
            except BaseException:
                ours.close()
                raise
        return cls(name, pid, pidfd, ours, stop_limit, cgroup=cgroup)

    @property
    def running(self) -> bool:
        """Whether the process was not reaped yet."""
        return not self._reaped.done()

    def run_times(self) -> dict[int, int]:
        """Nanoseconds of CPU time by index of vCPU."""
        return run_times(self.pid, self.hello.max_vcpus) if self.running else {}

    async def greet(self, limit: float) -> None:
        """Wait for the engine's hello, at most `limit` seconds. Raises EngineFailedError."""
        try:
            async with asyncio.timeout(limit):
                self.hello = await asyncio.shield(self._greeting)
        except TimeoutError:
            raise EngineFailedError(f"it did not start within {limit:g} s") from None

    async def gone(self) -> None:
        """Wait until the process is gone, which somebody else ends."""
        await asyncio.shield(self._reaped)
        if self._removal:
            await asyncio.shield(self._removal)

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
        await self.gone()

    # -- requests; each raises Refusal, with ENGINE_DIED if the engine ends before it answers

    async def create_vcpu(self, index: int, page: View | None) -> None:
        """Create a vCPU, with a page for the page transport, without for the stream transport."""
        transport = Transport.STREAM if page is None else Transport.PAGE
        fd = None if page is None else page.open(writable=True)
        await self._demand(
            lambda number: protocol.vcpu_packet(Type.CREATE_VCPU, number, index, transport), fd
        )

    async def map(self, memory: View, attachment: Attachment) -> None:
        """Map a part of a dataspace into the guest."""
        offset = memory.offset + attachment.offset
        flags = WRITABLE * attachment.writable | EXECUTABLE * attachment.executable
        await self._demand(
            lambda number: protocol.range_packet(
                Type.MAP, number, attachment.gpa, attachment.size, offset, flags
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

    async def run(
        self,
        index: int,
        exit_seq: int,
        half: bytes,
        fpu: bytes = b"",
        refused: Callable[[], None] = nothing,
    ) -> None:
        """Run a vCPU that is stopped at `exit_seq` (0: wherever), with a reply. `refused` is called if
        the engine does not, also when nobody waits for its answer any more."""
        request = self._request(
            Response,
            lambda number: protocol.run_packet(Type.RUN, number, index, exit_seq, half, fpu),
            refused=refused,
        )
        await self._success(request)

    async def resend(self, index: int, runs: Callable[[], None] = nothing) -> bool:
        """Have a vCPU with the stream transport send the exit again at which it is stopped; False if it
        is not, and then `runs` is called before what follows on the channel is looked at."""
        request = self._request(
            Response,
            lambda number: protocol.vcpu_packet(Type.RESEND, number, index),
            refused=runs,
        )
        answer = await asyncio.shield(request)
        if answer.status not in {Status.OK, Status.NOT_STOPPED}:
            raise self._refusal(answer)
        return answer.status == Status.OK

    async def pause(self, index: int) -> None:
        """Ask for EXIT_PAUSED."""
        await self._demand(lambda number: protocol.vcpu_packet(Type.PAUSE, number, index))

    async def window(self, index: int) -> None:
        """Ask for EXIT_WINDOW."""
        await self._demand(lambda number: protocol.vcpu_packet(Type.WINDOW, number, index))

    async def get_state(self, index: int, wanted: bytes) -> Exit:
        """The registers that the VMM's half `wanted` asks for."""
        return await self._ask(
            Exit, lambda number: protocol.run_packet(Type.GET_STATE, number, index, 0, wanted)
        )

    async def set_state(self, index: int, charged: bytes, fpu: bytes = b"") -> None:
        """Write the charged registers of a VMM's half."""
        await self._demand(
            lambda number: protocol.run_packet(Type.SET_STATE, number, index, 0, charged, fpu)
        )

    async def get_cpuid(self, index: int) -> tuple[CpuidLeaf, ...]:
        """What CPUID answers on a stopped vCPU."""
        answer = await self._ask(
            Cpuid, lambda number: protocol.vcpu_packet(Type.GET_CPUID, number, index)
        )
        return answer.leaves

    async def has_vcpu(self, index: int) -> bool:
        """Whether this vCPU was created, by this core or an earlier one."""
        try:
            await self.get_cpuid(index)
        except Refusal as refusal:
            if refusal.reason == "ENGINE_DIED":
                raise
            return refusal.reason != REASONS[Status.NO_VCPU]
        return True

    async def set_cpuid(self, index: int, leaves: Sequence[CpuidLeaf]) -> None:
        """Set what CPUID answers on a vCPU that never ran."""
        await self._demand(lambda number: protocol.cpuid_packet(number, index, leaves))

    async def set_msr_filter(self, ranges: Sequence[MsrRange]) -> None:
        """Name the MSRs whose accesses exit."""
        await self._demand(lambda number: protocol.msr_filter_packet(number, ranges))

    async def list_mappings(self, most: int) -> list[Mapping]:
        """What the engine has mapped, by its own table, and by the kernel: at most so many entries.
        Nothing is to be mapped or unmapped before this returns."""
        async with self.in_time("list its mappings"):
            try:
                return await listed(self._list_from, most)
            except MalformedPacketError as error:
                self._end_of_trust(str(error))
                raise self._death() from error

    @asynccontextmanager
    async def in_time(self, deed: str) -> AsyncIterator[None]:
        """What takes several answers takes no longer than one may. Raises Refusal."""
        try:
            async with asyncio.timeout(ANSWER_LIMIT):
                yield
        except TimeoutError:
            self._end_of_trust(f"it did not {deed} within {ANSWER_LIMIT:g} s")
            raise self._death() from None

    async def _list_from(self, first: int) -> Mappings:
        return await self._ask(Mappings, lambda number: protocol.list_packet(number, first))

    def must_have(self, capability: Capability) -> None:
        """Raises Refusal UNSUPPORTED."""
        if capability not in self.hello.capabilities:
            feature = str(capability.name).lower()
            raise Refusal(
                "UNSUPPORTED",
                f"engine {self.name} has no {feature}",
                engine=self.name,
                feature=feature,
            )

    async def _demand(self, packet: Callable[[int], bytes], fd: int | None = None) -> None:
        await self._success(self._request(Response, packet, fd))

    async def _ask(self, kind: type[Answer], packet: Callable[[int], bytes]) -> Answer:
        return await self._success(self._request(kind, packet))

    def _request(
        self,
        kind: type[Answer],
        packet: Callable[[int], bytes],
        fd: int | None = None,
        refused: Callable[[], None] = nothing,
    ) -> asyncio.Future[Answer]:
        if not self.running or self._stopping or self.died:
            if fd is not None:
                os.close(fd)
            raise self._death()
        if len(self._pending) >= REQUESTS_LIMIT:
            if fd is not None:
                os.close(fd)
            raise self._busy()
        number, answer = self._pending.add(kind, refused, ANSWER_LIMIT)
        self._channel.send(packet(number), fd)
        return answer

    def _unsent(self, packet: bytes, error: OSError) -> None:
        why = f"no fd can be sent to engine {self.name} now: {error.strerror}"
        _, number = protocol.header(packet)
        self._pending.drop(number, Refusal("MEMORY_FAILURE", why, errno=error.errno or 0))

    def _busy(self) -> Refusal:
        limit = REQUESTS_LIMIT
        why = f"engine {self.name} has {limit} requests to answer: ask again when it has"
        return Refusal("ENGINE_LIMIT", why, asked=1, used=limit, limit=limit)

    async def _success(self, request: asyncio.Future[Answer]) -> Answer:
        result = await asyncio.shield(request)
        if isinstance(result, Response) and result.status != Status.OK:
            raise self._refusal(result)
        return result

    async def _insist(self, packet: Callable[[int], bytes], deed: str) -> None:
        """Ask for what an engine that works never refuses; one that does is ended."""
        try:
            await self._demand(packet)
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
        if kind == Type.HELLO and not self._greeting.done():
            self._greeting.set_result(protocol.parse_hello(packet))
            self.greeting_hex = packet.hex()
        elif kind == Type.FAILED and not self._last_word:
            self._last_word = protocol.parse_response(packet).text or "it failed"
        elif kind == Type.RESPONSE:
            self._pending.answer(number, protocol.parse_response(packet))
        elif kind == Type.MAPPINGS:
            self._pending.answer(number, protocol.parse_mappings(packet))
        elif kind in {Type.EXIT, Type.STATE, Type.CPUID} and self._greeting.done():
            self._take_vcpu(Type(kind), number, packet)
        else:
            raise MalformedPacketError(f"type {kind}")

    def _take_vcpu(self, kind: Type, number: int, packet: bytes) -> None:
        """What it tells of a vCPU must fit what it told of itself."""
        hello = self._greeting.result()
        if kind == Type.CPUID:
            self._pending.answer(number, protocol.parse_cpuid(packet))
            return
        told = protocol.parse_exit(packet)
        if kind == Type.STATE:
            check_registers(hello, EngineHalf(told.half))
            self._pending.answer(number, told)
        else:
            check_exit(hello, EngineHalf(told.half))
            self.on_exit(told)

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
        how = "it ended" if self.adopted else reap(self.pid)
        os.close(self._pidfd)
        if not self._stopping:
            self.died = (self._cgroup and self._cgroup.out_of_memory()) or self._last_word or how
        if self._cgroup:
            self._removal = asyncio.get_running_loop().create_task(self._cgroup.remove())
        self._channel.close()
        self._fail_requests(self.died or "the session ended")
        if not self._greeting.done():
            self._greeting.set_exception(EngineFailedError(self.died or how))
            self._greeting.exception()  # seen, also when nobody waits for it
        self._reaped.set_result(None)
        self.on_reaped()
        if not self._stopping:
            self.on_end(self.died or "")

    def _fail_requests(self, why: str) -> None:
        self._pending.fail(
            lambda: Refusal("ENGINE_DIED", f"engine {self.name}: {why}", why=why),
        )
