"""Drives an engine executable over its channel, in the place of core, and its vCPUs in the place of
VMMs. The same tests run on every engine."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

from core_service.engine import protocol
from core_service.engine.catalog import KINDS
from core_service.engine.protocol import (
    Capability,
    CpuidLeaf,
    Hello,
    MsrRange,
    Response,
    Status,
    Transport,
    Type,
)
from dataspace._page import Waiter
from dataspace.registers import SCALARS, Segment
from dataspace.vcpu_page import (
    ALL_SCALARS,
    ALL_SEGMENTS,
    FPU_BIT,
    FPU_BYTES,
    FPU_CHARGED,
    FPU_VALID,
    HALF_BYTES,
    PAGE_BYTES,
    REPLY_FLAGS_AT,
    VMM_HALF,
    EngineHalf,
    Reason,
    ReplyFlag,
    VmmHalf,
    mask,
)
from tests.guests.assemble import assemble

PATIENCE: Final = 10.0  # seconds until a test gives up on an answer
PAGE: Final = 4096

FLAT_CODE: Final = Segment(0x08, 0xC9B, 0xFFFFFFFF, 0)
FLAT_DATA: Final = Segment(0x10, 0xC93, 0xFFFFFFFF, 0)
LONG_CODE: Final = Segment(0x18, 0xA9B, 0xFFFFFFFF, 0)
USER_CODE: Final = Segment(0x3B, 0xAFB, 0xFFFFFFFF, 0)
USER_DATA: Final = Segment(0x33, 0xCF3, 0xFFFFFFFF, 0)
DATA_SEGMENTS: Final = ("ds", "es", "ss", "fs", "gs")

ORIGIN: Final = 0x1000  # where guests are loaded
STACK: Final = 0x8000
PAGE_TABLES: Final = 0x9000  # three pages: the first GiB, identity, user accessible
RAM: Final = 16 * PAGE


_LONG: Final[dict[str, int | Segment]] = {
    "cr0": 0x80000011,
    "cr3": PAGE_TABLES,
    "cr4": 0x20,
    "efer": 0x500,
    "tr": Segment(0x40, 0x8B, 0x67, 0),
}
MODES: Final[dict[str, dict[str, int | Segment]]] = {
    "real": {"cs": Segment(0, 0x9B, 0xFFFF, 0)},
    "protected": {"cr0": 0x11, "cs": FLAT_CODE, **dict.fromkeys(DATA_SEGMENTS, FLAT_DATA)},
    "long": {**_LONG, "cs": LONG_CODE, **dict.fromkeys(DATA_SEGMENTS, FLAT_DATA)},
    "user": {**_LONG, "cs": USER_CODE, **dict.fromkeys(DATA_SEGMENTS, USER_DATA)},
}
BITS: Final = {"real": 16, "protected": 32, "long": 64, "user": 64}


class EngineGoneError(Exception):
    """The engine closed its channel; the text is what it said last."""


def memory(size: int, content: bytes = b"", *, seals: int = fcntl.F_SEAL_SHRINK) -> int:
    """A memfd as core makes them. The caller closes it."""
    fd = os.memfd_create("vmsession:guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    os.pwrite(fd, content, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def environment(name: str) -> dict[str, str]:
    """What core gives the engine `name`."""
    return next(kind for kind in KINDS if kind.name == name).environment()


class Engine:
    """An engine process and our end of its channel. Ends the process on leaving."""

    def __init__(self, executable: Path, variables: dict[str, str] | None = None) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.pid = os.posix_spawn(
                executable,
                [executable.name],
                variables or {},
                file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), protocol.CHANNEL_FD)],
            )
        self.pidfd = os.pidfd_open(self.pid)
        self.channel = ours
        self.channel.settimeout(PATIENCE)
        self.exits: deque[protocol.Exit] = deque()
        self.status: int | None = None
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.channel.close()
        try:
            self.wait()
        finally:
            os.close(self.pidfd)

    def wait(self) -> int:
        """The exit status, negative for a signal; kills what does not end."""
        if self.status is None:
            ended, _, _ = select.select([self.pidfd], [], [], PATIENCE)
            if not ended:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def receive(self) -> bytes:
        """The next packet. Raises EngineGoneError at the end of the channel."""
        try:
            packet = self.channel.recv(protocol.PACKET_LIMIT + 1)
        except ConnectionResetError:
            packet = b""
        if not packet:
            raise EngineGoneError
        if protocol.header(packet)[0] == Type.FAILED:
            raise EngineGoneError(protocol.parse_response(packet).text)
        return packet

    def hello(self) -> Hello:
        """The engine's first words."""
        self.offer = protocol.parse_hello(self.receive())
        return self.offer

    def need(self, capability: Capability) -> None:
        """Skip the test where the engine does not have it."""
        if capability not in self.offer.capabilities:
            pytest.skip(f"{self.offer.engine} has no {str(capability.name).lower()}")

    def lack(self, capability: Capability) -> None:
        """Skip the test where the engine has it."""
        if capability in self.offer.capabilities:
            pytest.skip(f"{self.offer.engine} has {str(capability.name).lower()}")

    def send(self, packet: bytes, *fds: int) -> None:
        """One packet as it stands."""
        socket.send_fds(self.channel, [packet], fds)

    def answer(self) -> bytes:
        """The next packet that is no exit; exits on the way are kept."""
        while True:
            packet = self.receive()
            if protocol.header(packet)[0] != Type.EXIT:
                return packet
            self.exits.append(protocol.parse_exit(packet))

    def ask(self, packet: Callable[[int], bytes], *fds: int) -> Response:
        """Send a request and return its response."""
        self._number += 1
        self.send(packet(self._number), *fds)
        answer = self.answer()
        assert protocol.header(answer) == (Type.RESPONSE, self._number)
        return protocol.parse_response(answer)

    def demand(self, packet: Callable[[int], bytes], *fds: int) -> None:
        """A request that must succeed."""
        response = self.ask(packet, *fds)
        assert response.status == Status.OK, response

    def next_exit(self, index: int) -> protocol.Exit:
        """The next exit of a vCPU with the stream transport."""
        while True:
            for arrived in self.exits:
                if arrived.index == index:
                    self.exits.remove(arrived)
                    return arrived
            packet = self.receive()
            assert protocol.header(packet)[0] == Type.EXIT
            self.exits.append(protocol.parse_exit(packet))

    def map(self, gpa: int, fd: int, size: int, *, offset: int = 0, writable: bool = True) -> None:
        """Attach a dataspace, executable."""
        flags = protocol.EXECUTABLE | protocol.WRITABLE * writable
        self.demand(
            lambda number: protocol.range_packet(Type.MAP, number, gpa, size, offset, flags), fd
        )

    def unmap(self, gpa: int, size: int) -> None:
        """Detach a range."""
        self.demand(lambda number: protocol.range_packet(Type.UNMAP, number, gpa, size))

    def written(self, gpa: int, size: int) -> None:
        """Note that we wrote guest memory."""
        self.demand(lambda number: protocol.range_packet(Type.WRITTEN, number, gpa, size))

    @contextmanager
    def ram(self, gpa: int = 0, content: bytes = b"") -> Iterator[mmap.mmap]:
        """Attach RAM bytes at `gpa` that begin with `content`, and give them to the test as well."""
        fd = memory(RAM, content)
        try:
            self.map(gpa, fd, RAM)
            with mmap.mmap(fd, RAM) as view:
                yield view
        finally:
            os.close(fd)

    def cpuid(self, index: int = 0) -> list[CpuidLeaf]:
        """A vCPU's CPUID table."""
        self.send(protocol.vcpu_packet(Type.GET_CPUID, 79, index))
        answer = self.answer()
        assert protocol.header(answer) == (Type.CPUID, 79), protocol.parse_response(answer)
        table = protocol.parse_cpuid(answer)
        assert table.index == index
        return list(table.leaves)

    def set_cpuid(self, leaves: Sequence[CpuidLeaf], index: int = 0) -> Response:
        """Ask for another CPUID table of a vCPU."""
        return self.ask(lambda number: protocol.cpuid_packet(number, index, leaves))

    def filter_msrs(self, *ranges: MsrRange) -> Response:
        """Ask for exits at these MSRs."""
        return self.ask(lambda number: protocol.msr_filter_packet(number, ranges))

    def threads(self) -> list[str]:
        """The names of its threads; KVM adds one of its own."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return [(task / "comm").read_text().strip() for task in tasks]

    def falls_asleep(self, thread: str) -> bool:
        """Whether the thread sleeps at any time before a test loses its patience."""
        deadline = time.monotonic() + PATIENCE
        tasks = list(Path(f"/proc/{self.pid}/task").iterdir())
        task = next(task for task in tasks if (task / "comm").read_text().strip() == thread)
        while time.monotonic() < deadline:
            # after the name: state, ... (proc_pid_stat(5))
            if (task / "stat").read_text().rpartition(")")[2].split()[0] == "S":
                return True
        return False

    def opened(self) -> dict[Path, str]:
        """Its descriptors, by what they are open on."""
        opened = {}
        with looking_inside():
            for fd in Path(f"/proc/{self.pid}/fd").iterdir():
                with suppress(FileNotFoundError):  # closed meanwhile
                    opened[fd] = str(fd.readlink())
        return opened

    def fds(self) -> int:
        """How many descriptors of the harness's memory objects it holds."""
        return sum(target.startswith("/memfd:vmsession:guest") for target in self.opened().values())

    def mappings(self) -> int:
        """How many mappings of the harness's memory objects it has."""
        with looking_inside():
            return Path(f"/proc/{self.pid}/maps").read_text().count("/memfd:vmsession:guest")


@contextmanager
def looking_inside() -> Iterator[None]:
    """Skip the test where we may not look into an engine."""
    try:
        yield
    except PermissionError:
        pytest.skip("an engine is not dumpable: only root can look into it")


class Vcpu:
    """A vCPU, whatever its transport: run it, look at its exit, prepare the reply."""

    def __init__(self, engine: Engine, transport: Transport, index: int = 0) -> None:
        self.engine = engine
        self.index = index
        self.transport = transport
        self.seen = 0
        self.memory: mmap.mmap | None = None
        self.map: mmap.mmap | None = None
        self._fpu_valid = self._fpu_charged = b""
        if transport == Transport.PAGE:
            fd = memory(PAGE_BYTES)
            try:
                engine.demand(self._create, fd)
                self.map = mmap.mmap(fd, PAGE_BYTES)
            finally:
                os.close(fd)
            self.waiter = Waiter(self.map, 20000)
            self.exit = EngineHalf(self.map)
            self.reply = VmmHalf(self.map, VMM_HALF)
        else:
            engine.demand(self._create)
            self.exit = EngineHalf(bytes(HALF_BYTES))
            self.reply = VmmHalf(bytearray(HALF_BYTES))

    def _create(self, number: int) -> bytes:
        return protocol.vcpu_packet(Type.CREATE_VCPU, number, self.index, self.transport)

    def packet(self, kind: Type, exit_seq: int = 0) -> Callable[[int], bytes]:
        """RUN, GET_STATE or SET_STATE with the reply prepared."""
        half, fpu = bytes(self.reply.u8), self._fpu_charged
        return lambda number: protocol.run_packet(kind, number, self.index, exit_seq, half, fpu)

    def charge_fpu(self, area: bytes) -> None:
        """The FPU area, FPU_BYTES, for the next run, as this transport carries it."""
        self.reply.charge_fpu()
        if self.map:
            self.map[FPU_CHARGED : FPU_CHARGED + FPU_BYTES] = area
        else:
            self._fpu_charged = area

    @property
    def fpu(self) -> bytes:
        """The FPU area of the last exit, as many bytes as the engine has; it was wanted."""
        assert self.exit.masks[1] >> FPU_BIT & 1
        area = self.map[FPU_VALID:FPU_CHARGED] if self.map else self._fpu_valid
        return area[: self.exit.fpu_size]

    def start(self) -> None:
        """Let it run with the reply prepared, and clear the reply where it is not shared."""
        if self.map:
            self.waiter.run()
            return
        self.engine.demand(self.packet(Type.RUN, self.exit.exit_seq))
        self.reply.clear_reply()
        self._fpu_charged = b""

    def wait(self) -> EngineHalf:
        """Wait for its next exit."""
        if not self.map:
            arrived = self.engine.next_exit(self.index)
            self.exit, self._fpu_valid = EngineHalf(arrived.half), arrived.fpu
            return self.exit
        seen = self.seen
        sequence = self.waiter.wait(seen, PATIENCE)
        assert sequence != seen, "no exit within the time limit"
        self.seen = sequence
        self.reply.clear_reply()
        return self.exit

    def run(self) -> EngineHalf:
        """Run until the next exit."""
        self.start()
        return self.wait()

    def expect(self, reason: Reason) -> EngineHalf:
        """Run, and look at why it stops."""
        self.run()
        assert self.reason == reason, self.describe()
        return self.exit

    @property
    def reason(self) -> Reason:
        """Of the last exit."""
        return Reason(self.exit.reason)

    def describe(self) -> str:
        """The last exit, for a failed assertion."""
        exit_ = self.exit
        return (
            f"{self.reason!r} flags {exit_.flags:#x} address {exit_.address:#x} ip {exit_.ip:#x} "
            f"detail {exit_.detail:#x} bytes {exit_.instruction_bytes.hex()} "
            f"registers {exit_.registers()}"
        )

    def begin(self, mode: str = "protected", ip: int = ORIGIN) -> None:
        """The first run, and the registers to begin at `ip`: "real", flat 32-bit "protected", "long"
        in ring 0, or "user" in ring 3 of long mode."""
        if BITS[mode] == 64:
            self.engine.need(Capability.LONG_MODE)
        self.expect(Reason.STARTUP)
        self.charge(**MODES[mode], rip=ip, rflags=2, rsp=STACK)
        self.reply.want(0, 0)

    def charge(self, **registers: int | Segment) -> None:
        """Registers for the next run."""
        for name, value in registers.items():
            self.reply.charge(name, value)

    def want(self, *names: str) -> None:
        """Registers to see with the next exits."""
        self.reply.want(*mask(names))

    def want_all(self) -> None:
        """All of them, but for the FPU."""
        self.reply.want(ALL_SCALARS, ALL_SEGMENTS)

    def fetch(self, *names: str) -> dict[str, int | Segment]:
        """Registers of the stopped vCPU, by asking for the same exit again."""
        self.want(*names)
        self.reply.set_flags(0x02)
        self.run()
        self.reply.want(0, 0)
        return self.exit.registers()

    def scalar(self, name: str) -> int:
        """One register of the stopped vCPU."""
        assert name in SCALARS
        value = self.fetch(name)[name]
        assert isinstance(value, int)
        return value

    def state(self, *names: str) -> EngineHalf:
        """Registers by the channel's GET_STATE."""
        return EngineHalf(self.stored(*names).half)

    def stored(self, *names: str) -> protocol.Exit:
        """The answer to GET_STATE."""
        self.want(*names)
        self.engine.send(self.packet(Type.GET_STATE)(77))
        self.reply.want(0, 0)
        answer = self.engine.answer()
        assert protocol.header(answer) == (Type.STATE, 77), protocol.parse_response(answer)
        return protocol.parse_exit(answer)

    def packet_status(self, kind: Type) -> Status:
        """What becomes of RUN, GET_STATE or SET_STATE."""
        self.engine.send(self.packet(kind)(78))
        answer = self.engine.answer()
        if protocol.header(answer)[0] == Type.STATE:
            return Status.OK
        return Status(protocol.parse_response(answer).status)

    def pause(self) -> None:
        """Ask for PAUSED as this transport's VMM does."""
        if self.map:
            self.waiter.pause()
        else:
            self.engine.demand(lambda n: protocol.vcpu_packet(Type.PAUSE, n, self.index))

    def window(self) -> None:
        """Ask for WINDOW as this transport's VMM does."""
        if self.map:
            self.waiter.window()
        else:
            self.engine.demand(lambda n: protocol.vcpu_packet(Type.WINDOW, n, self.index))

    def flag(self, flags: ReplyFlag) -> None:
        """Flags of the next reply, beside those that it has."""
        self.reply.set_flags(self.reply.u32[REPLY_FLAGS_AT // 4] | flags)

    def step(self) -> EngineHalf:
        """Run one instruction, or what is left of it."""
        self.flag(ReplyFlag.STEP)
        return self.run()

    def break_at(self, *addresses: int) -> None:
        """Execution breakpoints from the next run on; none clears them."""
        enabled = sum(1 << 2 * number for number in range(len(addresses)))
        self.reply.set_breakpoints(addresses, enabled)
        self.flag(ReplyFlag.BREAKPOINTS)

    def close(self) -> None:
        """Let go of the page."""
        if self.map:
            self.waiter.release()
            self.exit.release()
            self.reply.release()
            self.map.close()


def load(view: mmap.mmap, source: str, mode: str = "protected") -> None:
    """A guest program at ORIGIN, and page tables for long mode."""
    code = assemble(source, BITS[mode], ORIGIN)
    view[ORIGIN : ORIGIN + len(code)] = code
    for level in range(2):
        entry = (PAGE_TABLES + (level + 1) * PAGE | 7).to_bytes(8, "little")
        view[PAGE_TABLES + level * PAGE : PAGE_TABLES + level * PAGE + 8] = entry
    directory = b"".join((number << 21 | 0x87).to_bytes(8, "little") for number in range(512))
    view[PAGE_TABLES + 2 * PAGE : PAGE_TABLES + 3 * PAGE] = directory


@contextmanager
def guest(
    engine: Engine, transport: Transport, source: str, mode: str = "protected"
) -> Iterator[Vcpu]:
    """A vCPU that is about to execute `source`, with RAM bytes of memory at 0."""
    with engine.ram() as view:
        load(view, source, mode)
        vcpu = Vcpu(engine, transport)
        vcpu.memory = view
        try:
            vcpu.begin(mode)
            yield vcpu
        finally:
            vcpu.close()


def take_over(engine: Engine, index: int) -> None:
    """Bring a vCPU of any state to a halt by the channel alone."""
    engine.demand(lambda n: protocol.vcpu_packet(Type.PAUSE, n, index))
    fresh = VmmHalf(bytearray(HALF_BYTES))
    fresh.want(ALL_SCALARS, 0)

    def get_state(number: int) -> bytes:
        return protocol.run_packet(Type.GET_STATE, number, index, 0, bytes(fresh.u8))

    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        engine.send(get_state(5))
        answer = engine.answer()
        if protocol.header(answer)[0] == Type.STATE:
            return
        status = protocol.parse_response(answer).status
        assert status in {Status.NOT_STOPPED, Status.MID_INSTRUCTION}
        if status == Status.MID_INSTRUCTION:
            engine.send(protocol.run_packet(Type.RUN, 6, index, 0, bytes(HALF_BYTES)))
            engine.answer()
    pytest.fail("the vCPU does not come to a boundary")
