"""The Python view of the channel between core and an engine, `native/channel.h`. Pure: no I/O.

The 2048-byte halves of vCPU pages pass through as bytes; `dataspace.vcpu_page` reads and writes them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from dataspace.vcpu_page import ABI, FPU_BYTES, HALF_BYTES

CHANNEL_FD: Final = 3
VERSION: Final = 2
VCPUS: Final = 64
TEXT_BYTES: Final = 232
CPUID_LEAVES: Final = 160
MSR_RANGES: Final = 16
MSR_RANGE: Final = 4096
PACKET_LIMIT: Final = 16 + HALF_BYTES + FPU_BYTES


class Type(IntEnum):
    """`enum channel_type`."""

    HELLO = 1
    EXIT = 2
    FAILED = 3
    RESPONSE = 4
    STATE = 5
    CPUID = 6
    CREATE_VCPU = 16
    MAP = 17
    UNMAP = 18
    RUN = 19
    PAUSE = 20
    WINDOW = 21
    GET_STATE = 22
    SET_STATE = 23
    WRITTEN = 24
    GET_CPUID = 25
    SET_CPUID = 26
    SET_MSR_FILTER = 27


class Status(IntEnum):
    """`enum channel_status`."""

    OK = 0
    BAD_MESSAGE = 1
    NO_VCPU = 2
    EXISTS = 3
    NOT_STOPPED = 4
    MID_INSTRUCTION = 5
    LIMIT = 6
    KERNEL = 7
    UNSUPPORTED = 8
    STARTED = 9


STATUSES: Final = frozenset(Status)


class Capability(IntFlag):
    """`ENGINE_*` in channel.h."""

    FPU = 0x1
    SMP = 0x2
    DEBUG = 0x4
    PARALLEL = 0x8
    WATCH = 0x10
    INTERRUPTS = 0x20
    NMI = 0x40
    EXCEPTIONS = 0x80
    CPUID = 0x100
    MSR_FILTER = 0x200
    PAGING = 0x400
    LONG_MODE = 0x800


class Transport(IntEnum):
    """`enum vcpu_transport`."""

    PAGE = 0
    STREAM = 1


WRITABLE: Final = 0x1
EXECUTABLE: Final = 0x2

HEADER: Final = struct.Struct("<II")
HELLO: Final = struct.Struct("<IIII16sIIII2QQ")
RESPONSE: Final = struct.Struct(f"<IIII{TEXT_BYTES}s")
VCPU: Final = struct.Struct("<IIII")
RANGE: Final = struct.Struct("<IIQQQII")
RUN: Final = struct.Struct(f"<IIII{HALF_BYTES}s")
EXIT: Final = struct.Struct(f"<IIII{HALF_BYTES}s")


class MalformedPacketError(Exception):
    """An engine sent what no engine sends: it is not to be trusted any further."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What an engine says of itself first."""

    version: int
    page_abi: int
    engine: str
    capabilities: Capability
    max_vcpus: int
    tsc_khz: int
    physical_bits: int
    registers: tuple[int, int]
    exit_reasons: int

    @property
    def features(self) -> list[str]:
        """Names of its capabilities, as in `Capabilities.features` of core.proto."""
        return [
            str(capability.name).lower()
            for capability in Capability
            if capability in self.capabilities
        ]


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to a request, or with type FAILED the engine's last word. `error` is an errno."""

    status: Status
    error: int
    text: str


@dataclass(frozen=True, slots=True)
class Exit:
    """An exit, or the state that was asked for: a vCPU and the engine's half of its page."""

    index: int
    half: bytes


def header(packet: bytes) -> tuple[int, int]:
    """Type and request id. Raises MalformedPacketError."""
    if len(packet) < HEADER.size:
        raise MalformedPacketError(f"{len(packet)} bytes are no packet")
    kind, request = HEADER.unpack_from(packet)
    return kind, request


def _unpack(layout: struct.Struct, packet: bytes) -> tuple[int | bytes, ...]:
    if len(packet) != layout.size:
        raise MalformedPacketError(f"{len(packet)} bytes where {layout.size} belong")
    return layout.unpack(packet)


def parse_hello(packet: bytes) -> Hello:
    """Raises MalformedPacketError, also for versions or values that core does not know."""
    fields = _unpack(HELLO, packet)
    _, _, version, abi, name, capabilities, vcpus, khz, bits, scalars, segments, reasons = fields
    known = (version, abi) == (VERSION, ABI)
    if not known or not 1 <= int(vcpus) <= VCPUS or not 20 <= int(bits) <= 52:
        raise MalformedPacketError(
            f"hello with version {version!r}, page ABI {abi!r}, {vcpus!r} vCPUs, {bits!r} bits"
        )
    return Hello(
        int(version),
        int(abi),
        _text(bytes(name)),
        Capability(int(capabilities)),
        int(vcpus),
        int(khz),
        int(bits),
        (int(scalars), int(segments)),
        int(reasons),
    )


def parse_response(packet: bytes) -> Response:
    """Raises MalformedPacketError, also for a status that core does not know."""
    _, _, status, error, text = _unpack(RESPONSE, packet)
    if status not in STATUSES:
        raise MalformedPacketError(f"status {status!r}")
    return Response(Status(int(status)), int(error), _text(bytes(text)))


def parse_exit(packet: bytes) -> Exit:
    """Raises MalformedPacketError."""
    _, _, index, _, half = _unpack(EXIT, packet)
    return Exit(int(index), bytes(half))


def _text(raw: bytes) -> str:
    told = raw.split(b"\0", 1)[0].decode("utf-8", "replace")
    return "".join(character if character.isprintable() else "?" for character in told)


def vcpu_packet(kind: Type, request: int, index: int, transport: int = 0) -> bytes:
    """CREATE_VCPU, PAUSE, WINDOW."""
    return VCPU.pack(kind, request, index, transport)


def range_packet(  # noqa: PLR0913, PLR0917 - the fields of the packet
    kind: Type, request: int, gpa: int, size: int, offset: int = 0, flags: int = 0
) -> bytes:
    """MAP, UNMAP, WRITTEN."""
    return RANGE.pack(kind, request, gpa, size, offset, flags, 0)


def run_packet(kind: Type, request: int, index: int, exit_seq: int, half: bytes) -> bytes:
    """RUN, GET_STATE, SET_STATE with the VMM's half."""
    return RUN.pack(kind, request, index, exit_seq, half)
