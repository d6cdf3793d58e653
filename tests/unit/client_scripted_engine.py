"""The engine's side of a vCPU page, played by a thread from a script: what the client library is
tested against where no engine is needed."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field

from dataspace import vcpu_page as layout
from dataspace.registers import SCALAR_INDEX, SCALARS, SEGMENT_INDEX, SEGMENTS, Segment
from dataspace.vcpu_page import EngineHalf, Reason
from vmm_client.cpuid import CpuidLeaf
from vmm_client.errors import Unsupported
from vmm_client.page import Page
from vmm_client.vcpu import Vcpu
from vmm_client.written import WrittenLog

NAME = "sessions/t/vcpus/0"
ANSWER_SECONDS = 10.0
FPU_SIZE = 1088
SYS_FUTEX = 202  # x86-64
FUTEX_WAKE = 1

Values = dict[str, int | Segment]


@dataclass
class Record:
    """One exit to publish; `registers` are valid with it."""

    reason: int
    flags: int = 0
    address: int = 0
    value: int = 0
    size: int = 0
    count: int = 0
    data: bytes = b""
    ip: int = 0
    length: int = 0
    injection: int = 0
    detail: int = 0
    instruction: bytes = b""
    registers: Values = field(default_factory=dict)


@dataclass
class Answer:
    """The reply that came, decoded."""

    flags: int
    injection: int
    error: int
    value: int
    wanted: tuple[int, int]
    written: list[tuple[int, int]] | None
    data: bytes
    charged: Values
    breakpoints: list[int]
    control: int


Script = Generator[Record, Answer, None]


def blank_page() -> mmap.mmap:
    """A page as an engine introduces it."""
    mapping = mmap.mmap(-1, layout.PAGE_BYTES)
    words = memoryview(mapping).cast("I")
    words[layout.MAGIC_AT // 4] = layout.MAGIC
    words[layout.ABI_AT // 4] = layout.ABI
    words[layout.SIZE_AT // 4] = layout.PAGE_BYTES
    words[layout.TSC_KHZ_AT // 4] = 1_000_000
    words[layout.FPU_SIZE_AT // 4] = FPU_SIZE
    return mapping


class ScriptedEngine:
    """A context manager: runs `script` on its thread. The script yields records and is sent the
    answers; after its end the vCPU runs without exits."""

    def __init__(self, script: Callable[[], Script]) -> None:
        self.mapping = blank_page()
        self._words = memoryview(self.mapping).cast("I")
        self._longs = memoryview(self.mapping).cast("Q")
        self._reply = EngineHalf(self.mapping, layout.VMM_HALF)
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, args=(script(),))

    def __enter__(self) -> ScriptedEngine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(ANSWER_SECONDS)
        assert not self._thread.is_alive()
        if self._failure:
            raise self._failure

    def counter(self, at: int) -> int:
        """A counter of the VMM's half."""
        return self._words[(layout.VMM_HALF + at) // 4]

    def close_page(self) -> None:
        """End the script and the mapping. BufferError: somebody else has a view of it."""
        self._ended.set()
        self._thread.join(ANSWER_SECONDS)
        self._reply.release()
        self._words.release()
        self._longs.release()
        self.mapping.close()

    def _main(self, script: Script) -> None:
        try:
            self._await_run(1)
            record = next(script)
            sequence = 1
            while True:
                self.publish(record, sequence)
                sequence += 1
                if not self._await_run(sequence):
                    return
                record = script.send(self._answer())
        except StopIteration:
            return
        except BaseException as failure:
            self._failure = failure

    def _await_run(self, sequence: int) -> bool:
        while self.counter(layout.RUN_SEQ_AT) != sequence:
            if self._ended.wait(0.0002):
                return False
        return True

    def publish(self, record: Record, sequence: int) -> None:
        """Write a record, then its counter."""
        words, longs = self._words, self._longs
        words[layout.EXIT_REASON_AT // 4] = record.reason
        words[layout.EXIT_FLAGS_AT // 4] = record.flags
        longs[layout.EXIT_ADDRESS_AT // 8] = record.address
        longs[layout.EXIT_VALUE_AT // 8] = record.value
        words[layout.EXIT_SIZE_AT // 4] = record.size
        words[layout.EXIT_COUNT_AT // 4] = record.count
        longs[layout.EXIT_IP_AT // 8] = record.ip
        words[layout.EXIT_LENGTH_AT // 4] = record.length
        words[layout.EXIT_INJECTION_AT // 4] = record.injection
        words[layout.EXIT_DETAIL_AT // 4] = record.detail
        words[layout.EXIT_BYTES_SIZE_AT // 4] = len(record.instruction)
        self.mapping[layout.EXIT_BYTES_AT : layout.EXIT_BYTES_AT + 16] = record.instruction.ljust(
            16, b"\0"
        )
        self.mapping[layout.DATA_AT : layout.DATA_AT + len(record.data)] = record.data
        self._publish_registers(record.registers)
        if record.reason == Reason.PAUSED:
            words[layout.PAUSE_ACK_AT // 4] = self.counter(layout.PAUSE_SEQ_AT)
        words[layout.EXIT_SEQ_AT // 4] = sequence
        self._wake()

    def _wake(self) -> None:
        word = ctypes.c_uint32.from_buffer(self.mapping, layout.EXIT_SEQ_AT)
        ctypes.CDLL(None).syscall(
            SYS_FUTEX, ctypes.byref(word), FUTEX_WAKE, 2**31 - 1, None, None, 0
        )

    def _publish_registers(self, registers: Values) -> None:
        self._longs[layout.MASK_AT // 8], self._longs[layout.MASK_AT // 8 + 1] = layout.mask(
            registers
        )
        for name, value in registers.items():
            if isinstance(value, Segment):
                at = layout.SEGMENT_AT + 16 * SEGMENT_INDEX[name]
                self._longs[at // 8] = value.selector | value.attributes << 16 | value.limit << 32
                self._longs[at // 8 + 1] = value.base
            elif name != "fpu":
                self._longs[layout.SCALAR_AT // 8 + SCALAR_INDEX[name]] = value

    def _answer(self) -> Answer:
        words, longs = self._reply.u32, self._reply.u64
        count = words[layout.REPLY_WRITTEN_COUNT_AT // 4]
        ranges = None if count == layout.WRITTEN_ALL else [self._range(i) for i in range(count)]
        wanted = layout.REPLY_WANTED_AT // 8
        return Answer(
            flags=words[layout.REPLY_FLAGS_AT // 4],
            injection=words[layout.REPLY_INJECTION_AT // 4],
            error=words[layout.REPLY_INJECTION_ERROR_AT // 4],
            value=longs[layout.REPLY_VALUE_AT // 8],
            wanted=(longs[wanted], longs[wanted + 1]),
            written=ranges,
            data=bytes(self._reply.u8[layout.DATA_AT : layout.DATA_AT + layout.DATA_BYTES]),
            charged=self._reply.registers(),
            breakpoints=list(longs[layout.DEBUG_AT // 8 : layout.DEBUG_AT // 8 + 4]),
            control=words[layout.DEBUG_AT // 4 + 8],
        )

    def _range(self, index: int) -> tuple[int, int]:
        at = layout.REPLY_WRITTEN_AT // 8 + 2 * index
        return self._reply.u64[at], self._reply.u64[at + 1]


class Owner:
    """A session that lives until it is told otherwise."""

    def __init__(self, *features: str) -> None:
        self.written_log = WrittenLog()
        self.ended: Exception | None = None
        self.features = features
        self.engine_registers = [*SCALARS, *SEGMENTS]
        self.leaves: list[CpuidLeaf] = []

    def has(self, name: str) -> bool:
        return name in self.features or name in self.engine_registers

    def require(self, *names: str) -> None:
        for name in names:
            if not self.has(name):
                raise Unsupported("scripted", name)

    def cpuid(self, vcpu: str) -> list[CpuidLeaf]:
        assert vcpu == NAME
        return self.leaves

    def set_cpuid(self, vcpu: str, leaves: Iterable[CpuidLeaf]) -> None:
        assert vcpu == NAME
        self.leaves = list(leaves)

    def check_alive(self) -> None:
        if self.ended:
            raise self.ended


def vcpu_on(engine: ScriptedEngine, owner: Owner | None = None) -> Vcpu:
    """The library's vCPU on the page of a scripted engine."""
    return Vcpu(NAME, Page(engine.mapping), owner or Owner())
