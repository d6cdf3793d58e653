"""The Python view of the channel between core and an engine, `native/channel.h`. Pure: no I/O.

The 2048-byte halves of vCPU pages are read and written by `dataspace.vcpu_page`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from dataspace.vcpu_page import (
    ABI,
    ALL_SCALARS,
    ALL_SEGMENTS,
    FPU_BIT,
    FPU_BYTES,
    HALF_BYTES,
    EngineHalf,
    Reason,
)

CHANNEL_FD: Final = 3
CGROUP_FD: Final = 4
VERSION: Final = 2
VCPUS: Final = 64
TEXT_BYTES: Final = 232
CPUID_LEAVES: Final = 160
MSR_RANGES: Final = 16
MSR_RANGE: Final = 4096
MAPPING_ENTRIES: Final = 120
MEMORY_NAME: Final = "vmsession:"
PACKET_LIMIT: Final = 16 + HALF_BYTES + FPU_BYTES


class Type(IntEnum):
    """`enum channel_type`."""

    HELLO = 1
    EXIT = 2
    FAILED = 3
    RESPONSE = 4
    STATE = 5
    CPUID = 6
    MAPPINGS = 7
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
    LIST_MAPPINGS = 28
    RESEND = 29


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


class MappingKind(IntEnum):
    """`enum mapping_kind`."""

    REGION = 0
    KERNEL = 1


KINDS_OF_MAPPING: Final = frozenset(MappingKind)
WRITABLE: Final = 0x1
EXECUTABLE: Final = 0x2
SUBLEAF: Final = 0x1
FILTER_READ: Final = 0x1
FILTER_WRITE: Final = 0x2

HEADER: Final = struct.Struct("<II")
HELLO: Final = struct.Struct("<IIII16sIIII2QQ")
RESPONSE: Final = struct.Struct(f"<IIII{TEXT_BYTES}s")
VCPU: Final = struct.Struct("<IIII")
RANGE: Final = struct.Struct("<IIQQQII")
RUN: Final = struct.Struct(f"<IIII{HALF_BYTES}s")
EXIT: Final = struct.Struct(f"<IIII{HALF_BYTES}s")
LEAF: Final = struct.Struct("<IIIIIIII")
CPUID: Final = struct.Struct(f"<IIII{CPUID_LEAVES * LEAF.size}s")
RANGE_OF_MSRS: Final = struct.Struct("<IIII")
LIST: Final = struct.Struct("<IIII")
MAPPING: Final = struct.Struct("<QQQQQII")
MAPPINGS: Final = struct.Struct(f"<IIIIII{MAPPING_ENTRIES * MAPPING.size}s")
MSR_FILTER: Final = struct.Struct(f"<IIII{MSR_RANGES * RANGE_OF_MSRS.size}s")

KNOWN_CAPABILITIES: Final = sum(Capability)
KNOWN_REASONS: Final = sum(1 << reason for reason in Reason)
KNOWN_SEGMENTS: Final = ALL_SEGMENTS | 1 << FPU_BIT


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
    """An exit, or the state that was asked for: a vCPU, the engine's half of its page, and the FPU area
    where it is valid, else nothing."""

    index: int
    half: bytes
    fpu: bytes


@dataclass(frozen=True, slots=True)
class CpuidLeaf:
    """`struct cpuid_leaf`: what CPUID answers for EAX = `function`, and ECX = `index` where the leaf has
    sub-leaves."""

    function: int
    index: int | None
    eax: int
    ebx: int
    ecx: int
    edx: int


@dataclass(frozen=True, slots=True)
class Cpuid:
    """The CPUID table of a vCPU."""

    index: int
    leaves: tuple[CpuidLeaf, ...]


@dataclass(frozen=True, slots=True)
class MsrRange:
    """`struct msr_range`: MSRs whose reads or writes exit."""

    first: int
    count: int
    read: bool
    write: bool


@dataclass(frozen=True, slots=True)
class Mapping:
    """`struct channel_mapping`: an entry of an engine's own table (`gpa` counts), or what the kernel has
    mapped in its address space (`offset` and `inode` count)."""

    kind: MappingKind
    gpa: int
    host: int
    size: int
    offset: int
    inode: int
    flags: int

    @property
    def end(self) -> int:
        """The first host address behind it."""
        return self.host + self.size


@dataclass(frozen=True, slots=True)
class Mappings:
    """A part of the list of mappings, from entry `first` on, of `total`."""

    first: int
    total: int
    entries: tuple[Mapping, ...]


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
    for what, claimed, defined in (
        ("capabilities", capabilities, KNOWN_CAPABILITIES),
        ("registers", scalars, ALL_SCALARS),
        ("segments", segments, KNOWN_SEGMENTS),
        ("exit reasons", reasons, KNOWN_REASONS),
    ):
        if unknown := int(claimed) & ~defined:
            raise MalformedPacketError(f"hello with unknown {what}: {unknown:#x}")
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
    """EXIT and STATE. Raises MalformedPacketError."""
    _, _, index, _, half = _unpack(EXIT, packet[: EXIT.size])
    fpu = packet[EXIT.size :]
    belongs = FPU_BYTES * (EngineHalf(bytes(half)).masks[1] >> FPU_BIT & 1)
    if len(fpu) != belongs:
        raise MalformedPacketError(
            f"{len(packet)} bytes where {EXIT.size} and {belongs} of the FPU belong"
        )
    return Exit(int(index), bytes(half), fpu)


def parse_cpuid(packet: bytes) -> Cpuid:
    """CPUID. Raises MalformedPacketError, also for more leaves than there is room for."""
    _, _, index, count, table = _unpack(CPUID, packet)
    if int(count) > CPUID_LEAVES:
        raise MalformedPacketError(f"{count!r} CPUID leaves, {CPUID_LEAVES} at most")
    leaves = LEAF.iter_unpack(bytes(table)[: int(count) * LEAF.size])
    return Cpuid(int(index), tuple(_leaf(*leaf) for leaf in leaves))


def parse_mappings(packet: bytes) -> Mappings:
    """MAPPINGS. Raises MalformedPacketError, also for a part that lies not within the whole."""
    _, _, first, total, count, _, table = _unpack(MAPPINGS, packet)
    first, total, count = int(first), int(total), int(count)
    if count > MAPPING_ENTRIES or first + count > total or (total > 0 and count == 0):
        raise MalformedPacketError(f"{count} mappings from {first} on, of {total}")
    entries = MAPPING.iter_unpack(bytes(table)[: count * MAPPING.size])
    return Mappings(first, total, tuple(_mapping(*entry) for entry in entries))


def _mapping(  # noqa: PLR0913, PLR0917 - the fields of the entry
    gpa: int, host: int, size: int, offset: int, inode: int, flags: int, kind: int
) -> Mapping:
    if kind not in KINDS_OF_MAPPING:
        raise MalformedPacketError(f"a mapping of kind {kind}")
    return Mapping(MappingKind(kind), gpa, host, size, offset, inode, flags)


def _leaf(function: int, index: int, flags: int, *registers: int) -> CpuidLeaf:
    if flags & ~SUBLEAF:
        raise MalformedPacketError(f"CPUID leaf {function:#x} with flags {flags:#x}")
    eax, ebx, ecx, edx, _ = registers
    return CpuidLeaf(function, index if flags else None, eax, ebx, ecx, edx)


def _text(raw: bytes) -> str:
    told = raw.split(b"\0", 1)[0].decode("utf-8", "replace")
    return "".join(character if character.isprintable() else "?" for character in told)


def vcpu_packet(kind: Type, request: int, index: int, transport: int = 0) -> bytes:
    """CREATE_VCPU, PAUSE, WINDOW, GET_CPUID."""
    return VCPU.pack(kind, request, index, transport)


def list_packet(request: int, first: int) -> bytes:
    """LIST_MAPPINGS."""
    return LIST.pack(Type.LIST_MAPPINGS, request, first, 0)


def range_packet(  # noqa: PLR0913, PLR0917 - the fields of the packet
    kind: Type, request: int, gpa: int, size: int, offset: int = 0, flags: int = 0
) -> bytes:
    """MAP, UNMAP, WRITTEN."""
    return RANGE.pack(kind, request, gpa, size, offset, flags, 0)


def run_packet(  # noqa: PLR0913, PLR0917 - the fields of the packet
    kind: Type, request: int, index: int, exit_seq: int, half: bytes, fpu: bytes = b""
) -> bytes:
    """RUN, GET_STATE, SET_STATE with the VMM's half; `fpu`, FPU_BYTES, where the half charges it."""
    return RUN.pack(kind, request, index, exit_seq, half) + fpu


def cpuid_packet(request: int, index: int, leaves: Sequence[CpuidLeaf]) -> bytes:
    """SET_CPUID; at most CPUID_LEAVES."""
    table = b"".join(_packed(leaf) for leaf in leaves)
    return CPUID.pack(Type.SET_CPUID, request, index, len(leaves), table)


def _packed(leaf: CpuidLeaf) -> bytes:
    flags = SUBLEAF * (leaf.index is not None)
    registers = (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx)
    return LEAF.pack(leaf.function, leaf.index or 0, flags, *registers, 0)


def msr_filter_packet(request: int, ranges: Sequence[MsrRange]) -> bytes:
    """SET_MSR_FILTER; at most MSR_RANGES."""
    table = b"".join(
        RANGE_OF_MSRS.pack(
            msrs.first, msrs.count, FILTER_READ * msrs.read | FILTER_WRITE * msrs.write, 0
        )
        for msrs in ranges
    )
    return MSR_FILTER.pack(Type.SET_MSR_FILTER, request, len(ranges), 0, table)
