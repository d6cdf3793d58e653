"""The Python view of the channel against the header: sizes, offsets, values."""

from __future__ import annotations

import re
import struct
import subprocess
from enum import IntEnum
from pathlib import Path

import pytest

from core_service.engine import protocol
from core_service.engine.native import build
from core_service.engine.protocol import (
    Capability,
    Cpuid,
    CpuidLeaf,
    Exit,
    Hello,
    MalformedPacketError,
    Mapping,
    MappingKind,
    Mappings,
    MsrRange,
    Response,
    Status,
    Transport,
    Type,
)
from dataspace.vcpu_page import FPU_BIT, FPU_BYTES, HALF_BYTES, MASK_AT, EngineHalf

STRUCTS = {
    "channel_header": protocol.HEADER,
    "channel_hello": protocol.HELLO,
    "channel_response": protocol.RESPONSE,
    "channel_vcpu": protocol.VCPU,
    "channel_range": protocol.RANGE,
    "channel_run": protocol.RUN,
    "channel_exit": protocol.EXIT,
    "cpuid_leaf": protocol.LEAF,
    "channel_cpuid": protocol.CPUID,
    "msr_range": protocol.RANGE_OF_MSRS,
    "channel_msr_filter": protocol.MSR_FILTER,
    "channel_list": protocol.LIST,
    "channel_mapping": protocol.MAPPING,
    "channel_mappings": protocol.MAPPINGS,
}
FIELDS = {
    "channel_hello": (
        "header.type header.id version page_abi engine capabilities max_vcpus tsc_khz physical_bits "
        "registers[0] registers[1] exit_reasons"
    ),
    "channel_response": "header.type header.id status error text",
    "channel_vcpu": "header.type header.id index transport",
    "channel_range": "header.type header.id gpa size offset flags reserved",
    "channel_run": "header.type header.id index exit_seq vmm",
    "channel_exit": "header.type header.id index reserved engine",
    "cpuid_leaf": "function index flags eax ebx ecx edx reserved",
    "channel_cpuid": "header.type header.id index leaves leaf",
    "msr_range": "first count flags reserved",
    "channel_msr_filter": "header.type header.id ranges reserved range",
    "channel_list": "header.type header.id first reserved",
    "channel_mapping": "gpa host size offset inode flags kind",
    "channel_mappings": "header.type header.id first total entries reserved entry",
}
CONSTANTS = {
    "CHANNEL_FD": protocol.CHANNEL_FD,
    "CGROUP_FD": protocol.CGROUP_FD,
    "CHANNEL_VERSION": protocol.VERSION,
    "CHANNEL_VCPUS": protocol.VCPUS,
    "CHANNEL_TEXT_BYTES": protocol.TEXT_BYTES,
    "CHANNEL_CPUID_LEAVES": protocol.CPUID_LEAVES,
    "CHANNEL_MSR_RANGES": protocol.MSR_RANGES,
    "CHANNEL_MSR_RANGE": protocol.MSR_RANGE,
    "CHANNEL_MAPPING_ENTRIES": protocol.MAPPING_ENTRIES,
    "CHANNEL_WRITABLE": protocol.WRITABLE,
    "CHANNEL_EXECUTABLE": protocol.EXECUTABLE,
    "CPUID_SUBLEAF": protocol.SUBLEAF,
    "MSR_FILTER_READ": protocol.FILTER_READ,
    "MSR_FILTER_WRITE": protocol.FILTER_WRITE,
}
ENUMS: dict[str, type[IntEnum]] = {
    "channel_type": Type,
    "channel_status": Status,
    "vcpu_transport": Transport,
    "mapping_kind": MappingKind,
}
PREFIXES = {"vcpu_transport": "VCPU_TRANSPORT_", "mapping_kind": "MAPPING_"}


def header() -> str:
    return (build.NATIVE / "channel.h").read_text()


def names_of(enum: str) -> list[str]:
    """The enumerators of an enum in the header, in order."""
    found = re.search(rf"enum {enum} {{(.*?)}}", header(), re.DOTALL)
    assert found
    body = re.sub(r"/\*.*?\*/", "", found[1], flags=re.DOTALL)
    return re.findall(r"\b([A-Z][A-Z_]+)\b", body)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the compiler makes of the header: name of a size, an offset or a value → number."""
    questions = {f"sizeof {name}": f"sizeof(struct {name})" for name in STRUCTS}
    for name, fields in FIELDS.items():
        questions |= {
            f"{name}.{field}": f"offsetof(struct {name}, {field})" for field in fields.split()
        }
    capabilities = re.findall(r"#define (ENGINE_[A-Z_]+)", header())
    values = [*CONSTANTS, *capabilities, *(name for enum in ENUMS for name in names_of(enum))]
    questions |= {name: name for name in values}
    lines = "\n".join(f'printf("%s=%ld\\n", "{n}", (long){code});' for n, code in questions.items())
    directory = tmp_path_factory.mktemp("protocol")
    source, program = directory / "ask.c", directory / "ask"
    source.write_text(
        '#include <stddef.h>\n#include <stdio.h>\n#include "channel.h"\n'
        f"int main(void) {{\n{lines}\nreturn 0;\n}}\n"
    )
    include = [f"-I{path}" for path in (build.NATIVE, *build.INCLUDE)]
    subprocess.run([*build.compiler(), *include, source, "-o", program], check=True)
    answers = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {n: int(value) for n, value in (line.split("=") for line in answers.splitlines())}


@pytest.mark.parametrize("name", STRUCTS)
def test_sizes(compiled: dict[str, int], name: str) -> None:
    assert STRUCTS[name].size == compiled[f"sizeof {name}"]


@pytest.mark.parametrize("name", FIELDS)
def test_offsets(compiled: dict[str, int], name: str) -> None:
    """A field's offset is the size of the format up to it: the formats have no padding."""
    codes = re.findall(r"\d*s|[A-Z]", re.sub(r"(\d+)([A-Z])", expand, STRUCTS[name].format[1:]))
    offsets = [struct.calcsize("<" + "".join(codes[:count])) for count in range(len(codes))]
    assert offsets == [compiled[f"{name}.{field}"] for field in FIELDS[name].split()]


def expand(repeated: re.Match[str]) -> str:
    """2Q → QQ."""
    return repeated[2] * int(repeated[1])


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants(compiled: dict[str, int], name: str) -> None:
    assert CONSTANTS[name] == compiled[name]


@pytest.mark.parametrize("enum", ENUMS)
def test_enums(compiled: dict[str, int], enum: str) -> None:
    prefix = PREFIXES.get(enum, "CHANNEL_")
    theirs = {name.removeprefix(prefix): compiled[name] for name in names_of(enum)}
    assert theirs == {member.name: member.value for member in ENUMS[enum]}


def test_capabilities(compiled: dict[str, int]) -> None:
    theirs = {name: value for name, value in compiled.items() if name.startswith("ENGINE_")}
    assert theirs == {f"ENGINE_{member.name}": member.value for member in Capability}


def test_the_largest_packet_of_an_engine_fits(compiled: dict[str, int]) -> None:
    with_fpu = compiled["sizeof channel_exit"] + FPU_BYTES
    largest = max(with_fpu, *(compiled[f"sizeof {name}"] for name in STRUCTS))
    assert largest == protocol.PACKET_LIMIT


HELLO = (Type.HELLO, 0, 2, 2, b"kvm", 0x9, 64, 2_400_000, 46, 0x7, 0x1, 0x3E)


def test_hello() -> None:
    assert protocol.parse_hello(protocol.HELLO.pack(*HELLO)) == Hello(
        version=2,
        page_abi=2,
        engine="kvm",
        capabilities=Capability.FPU | Capability.PARALLEL,
        max_vcpus=64,
        tsc_khz=2_400_000,
        physical_bits=46,
        registers=(0x7, 0x1),
        exit_reasons=0x3E,
    )


@pytest.mark.parametrize(("field", "value"), [(2, 1), (3, 1), (6, 0), (6, 65), (8, 19), (8, 53)])
def test_hello_of_another_world_is_malformed(field: int, value: int) -> None:
    fields = (*HELLO[:field], value, *HELLO[field + 1 :])
    with pytest.raises(MalformedPacketError, match=str(value)):
        protocol.parse_hello(protocol.HELLO.pack(*fields))


@pytest.mark.parametrize(
    ("field", "bit", "what"),
    [(5, 12, "capabilities"), (9, 51, "registers"), (10, 31, "segments"), (11, 16, "exit reasons")],
)
def test_hello_with_what_there_is_not_is_malformed(field: int, bit: int, what: str) -> None:
    fields = (*HELLO[:field], 1 << bit, *HELLO[field + 1 :])
    with pytest.raises(MalformedPacketError, match=f"unknown {what}: {1 << bit:#x}"):
        protocol.parse_hello(protocol.HELLO.pack(*fields))


def test_features() -> None:
    fields = (*HELLO[:5], 0xFFF, *HELLO[6:])
    features = protocol.parse_hello(protocol.HELLO.pack(*fields)).features
    assert (features[0], features[-1], len(features)) == ("fpu", "long_mode", 12)


def test_response_is_text_for_people() -> None:
    packet = protocol.RESPONSE.pack(Type.RESPONSE, 7, Status.KERNEL, 12, b"a\x1b[1mb\xff\0rest")
    assert protocol.header(packet) == (Type.RESPONSE, 7)
    assert protocol.parse_response(packet) == Response(Status.KERNEL, 12, "a?[1mb\ufffd")


def half_with_fpu(valid: int) -> bytes:
    half = EngineHalf(bytearray(HALF_BYTES))
    half.u64[MASK_AT // 8 + 1] = valid << FPU_BIT
    return bytes(half.u8)


@pytest.mark.parametrize("valid", [0, 1])
@pytest.mark.parametrize("kind", [Type.EXIT, Type.STATE])
def test_exit_with_and_without_fpu(kind: Type, valid: int) -> None:
    half, fpu = half_with_fpu(valid), b"f" * FPU_BYTES * valid
    packet = protocol.EXIT.pack(kind, 0, 3, 0, half)
    assert protocol.parse_exit(packet + fpu) == Exit(3, half, fpu)
    for wrong in (b"", b"f" * 512, b"f" * FPU_BYTES, b"f" * (FPU_BYTES + 1)):
        if wrong != fpu:
            with pytest.raises(MalformedPacketError, match=f"{len(fpu)} of the FPU belong"):
                protocol.parse_exit(packet + wrong)


MAPPED = Mapping(MappingKind.KERNEL, 0, 0x7000, 0x2000, 0x1000, 77, protocol.WRITABLE)


def mappings_packet(first: int, total: int, count: int, kind: int = MappingKind.KERNEL) -> bytes:
    entry = protocol.MAPPING.pack(0, 0x7000, 0x2000, 0x1000, 77, protocol.WRITABLE, kind)
    table = entry * protocol.MAPPING_ENTRIES
    return protocol.MAPPINGS.pack(Type.MAPPINGS, 9, first, total, count, 0, table)


def test_mappings() -> None:
    told = protocol.parse_mappings(mappings_packet(1, 3, 2))
    assert told == Mappings(1, 3, (MAPPED, MAPPED))
    assert protocol.parse_mappings(mappings_packet(0, 0, 0)) == Mappings(0, 0, ())


@pytest.mark.parametrize(
    ("packet", "why"),
    [
        (mappings_packet(0, 200, 121), "121 mappings from 0 on, of 200"),
        (mappings_packet(2, 3, 2), "2 mappings from 2 on, of 3"),
        (mappings_packet(1, 3, 0), "0 mappings from 1 on, of 3"),
        (mappings_packet(0, 1, 1, kind=2), "a mapping of kind 2"),
    ],
)
def test_mappings_that_are_none(packet: bytes, why: str) -> None:
    with pytest.raises(MalformedPacketError, match=why):
        protocol.parse_mappings(packet)


def test_cpuid() -> None:
    leaves = (CpuidLeaf(0, None, 0x16, 1, 2, 3), CpuidLeaf(4, 0, 5, 6, 7, 0xFFFFFFFF))
    packet = protocol.cpuid_packet(9, 2, leaves)
    assert protocol.header(packet) == (Type.SET_CPUID, 9)
    assert protocol.parse_cpuid(packet) == Cpuid(2, leaves)


def test_cpuid_that_cannot_be_is_malformed() -> None:
    leaf = protocol.LEAF.pack(1, 0, 2, 0, 0, 0, 0, 0)
    for count, table, why in (
        (protocol.CPUID_LEAVES + 1, b"", "161 CPUID leaves, 160 at most"),
        (1, leaf, "leaf 0x1 with flags 0x2"),
    ):
        packet = protocol.CPUID.pack(Type.CPUID, 1, 0, count, table)
        with pytest.raises(MalformedPacketError, match=why):
            protocol.parse_cpuid(packet)


def test_msr_filter() -> None:
    ranges = (MsrRange(0x10, 1, read=True, write=False), MsrRange(0xC0000000, 4096, True, True))
    packet = protocol.msr_filter_packet(7, ranges)
    words = (27, 7, 2, 0, 0x10, 1, 1, 0, 0xC0000000, 4096, 3, 0)
    assert packet == struct.pack("<12I", *words) + bytes(14 * 16)


@pytest.mark.parametrize("size", [0, 7])
def test_short_header_is_malformed(size: int) -> None:
    with pytest.raises(MalformedPacketError, match=f"{size} bytes"):
        protocol.header(bytes(size))


@pytest.mark.parametrize(
    "parse",
    [
        protocol.parse_hello,
        protocol.parse_response,
        protocol.parse_exit,
        protocol.parse_cpuid,
    ],
)
@pytest.mark.parametrize("size", [0, 8, 100, 5000])
def test_another_size_is_malformed(parse: object, size: int) -> None:
    assert callable(parse)
    with pytest.raises(MalformedPacketError, match=f"^{size} bytes"):
        parse(bytes(size))


def test_requests() -> None:
    assert protocol.vcpu_packet(Type.CREATE_VCPU, 1, 2, Transport.STREAM) == struct.pack(
        "<4I", 16, 1, 2, 1
    )
    assert protocol.range_packet(Type.MAP, 3, 0x1000, 0x2000, 0x4000, 3) == struct.pack(
        "<2I3Q2I", 17, 3, 0x1000, 0x2000, 0x4000, 3, 0
    )
    half = b"h" * HALF_BYTES
    run = struct.pack("<4I", 19, 4, 5, 6) + half
    assert protocol.run_packet(Type.RUN, 4, 5, 6, half) == run
    assert protocol.run_packet(Type.RUN, 4, 5, 6, half, b"fpu") == run + b"fpu"


def test_sources_stand_in_one_place() -> None:
    """Every C file belongs to the common part or to exactly one engine."""
    for engine in build.ENGINES:
        sources = {source.name for source in engine.sources()}
        assert "main.c" in sources
        assert f"{engine.name}.c" in sources
        assert not any(
            other.owns(Path(source))
            for other in build.ENGINES
            if other is not engine
            for source in sources
        )
