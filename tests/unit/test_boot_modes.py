"""Processor modes and flat images."""

from __future__ import annotations

import pytest

from dataspace.registers import SCALARS, SEGMENTS, Segment
from tests.unit.boot_memory import Memory
from vmm_client.boot import flat
from vmm_client.boot.entry import ImageError
from vmm_client.boot.flat import Mode
from vmm_client.boot.modes import CODE_32, CODE_64, DATA_32, descriptor, long_mode

MIB = 1 << 20


@pytest.fixture
def memory() -> Memory:
    return Memory(4 * MIB)


def translate(memory: Memory, root: int, address: int) -> int:
    """Walks the page tables as the processor does, 2 MiB pages only."""
    table = root
    for shift in (39, 30):
        entry = memory.u64(table + 8 * (address >> shift & 511))
        assert entry & 0x83 == 0x03
        table = entry & ~0xFFF
    entry = memory.u64(table + 8 * (address >> 21 & 511))
    assert entry & 0x83 == 0x83
    return (entry & ~0x1FFFFF) | (address & 0x1FFFFF)


@pytest.mark.parametrize(
    ("segment", "encoded"),
    [(CODE_64, 0x00AF9B000000FFFF), (CODE_32, 0x00CF9B000000FFFF), (DATA_32, 0x00CF93000000FFFF)],
)
def test_descriptors(segment: Segment, encoded: int) -> None:
    assert descriptor(segment) == encoded


def test_a_descriptor_in_bytes_scatters_base_and_limit() -> None:
    assert descriptor(Segment(0, 0x089, 0xABCDE, 0x12345678)) == 0x120A_8934_5678_BCDE


@pytest.mark.parametrize("address", [0, 0x7000, 0x123_4567, (1 << 30) + 5, (4 << 30) - 1])
def test_long_mode_maps_four_gib_one_to_one(memory: Memory, address: int) -> None:
    root = long_mode(memory)["cr3"]
    assert isinstance(root, int)
    assert translate(memory, root, address) == address


def test_long_mode_registers(memory: Memory) -> None:
    registers = long_mode(memory)
    scalars = {name: value for name, value in registers.items() if isinstance(value, int)}
    assert scalars == {"cr0": 0x80000031, "cr3": 0x9000, "cr4": 0x20, "efer": 0x500, "rflags": 2}
    gdt = registers["gdtr"]
    assert isinstance(gdt, Segment)
    for name in ("cs", "ds", "es", "fs", "gs", "ss"):
        segment = registers[name]
        assert isinstance(segment, Segment)
        assert segment.selector + 7 <= gdt.limit
        assert memory.u64(gdt.base + segment.selector) == descriptor(segment)
    assert registers["tr"] == Segment(0, 0x8B, 0xFFFF, 0)


@pytest.mark.parametrize("mode", list(Mode))
def test_every_register_charged_exists(memory: Memory, mode: Mode) -> None:
    registers = flat.load(memory, b"\xf4", mode).registers
    assert set(registers) <= {*SCALARS, *SEGMENTS}
    for name, value in registers.items():
        assert isinstance(value, Segment) == (name in SEGMENTS)


def test_real_mode_entry(memory: Memory) -> None:
    registers = flat.load(memory, b"\xf4", Mode.REAL, 0x1_2348).registers
    assert registers["cs"] == Segment(0x1234, 0x9B, 0xFFFF, 0x12340)
    assert registers["ss"] == registers["ds"] == Segment(0x1234, 0x93, 0xFFFF, 0x12340)
    assert (registers["rip"], registers["rsp"], registers["cr0"]) == (8, 0xFFFE, 0x10)
    assert memory.read(0x12348, 1) == b"\xf4"


def test_protected_mode_entry(memory: Memory) -> None:
    registers = flat.load(memory, b"\x90\xf4", Mode.PROTECTED).registers
    assert registers["cs"] == CODE_32
    assert (registers["rip"], registers["rsp"], registers["cr0"]) == (MIB, MIB, 0x31)
    assert "cr3" not in registers
    assert memory.read(MIB, 2) == b"\x90\xf4"


def test_long_mode_entry(memory: Memory) -> None:
    registers = flat.load(memory, b"\xf4", Mode.LONG, 2 * MIB).registers
    assert registers["cs"] == CODE_64
    assert (registers["rip"], registers["rsp"]) == (2 * MIB, 2 * MIB)


def test_an_image_may_fill_the_memory_and_no_more(memory: Memory) -> None:
    flat.load(memory, bytes(3 * MIB), Mode.PROTECTED)
    with pytest.raises(ImageError, match=r"3145729 bytes at 0x100000 ends at 0x400001.*0x400000"):
        flat.load(memory, bytes(3 * MIB + 1), Mode.PROTECTED)


@pytest.mark.parametrize("mode", list(Mode))
def test_an_empty_image_is_refused(memory: Memory, mode: Mode) -> None:
    with pytest.raises(ImageError, match="empty"):
        flat.load(memory, b"", mode)


def test_a_negative_address_is_refused(memory: Memory) -> None:
    with pytest.raises(ImageError, match="-0x1"):
        flat.load(memory, b"\xf4", Mode.REAL, -1)


@pytest.mark.parametrize(
    ("gpa", "size", "limit"),
    [(0x7C00, 0x10001, "0x17c00"), (0x7C08, 0xFFF9, "0x17c00"), (0xFFFF0, 17, "0x100000")],
)
def test_real_mode_reaches_one_segment_below_one_mib(
    memory: Memory, gpa: int, size: int, limit: str
) -> None:
    with pytest.raises(ImageError, match=f"real mode reaches {limit}"):
        flat.load(memory, bytes(size), Mode.REAL, gpa)
    flat.load(memory, bytes(size - 1), Mode.REAL, gpa)


@pytest.mark.parametrize(("gpa", "size"), [(0x5FFF, 2), (0x6000, 1), (0xEFFF, 1), (0, 0x20000)])
def test_an_image_must_not_cover_the_tables(memory: Memory, gpa: int, size: int) -> None:
    with pytest.raises(ImageError, match="0x6000 to 0xf000"):
        flat.load(memory, bytes(size), Mode.LONG, gpa)


@pytest.mark.parametrize(("gpa", "size"), [(0x5000, 0x1000), (0xF000, 1)])
def test_an_image_may_touch_the_tables(memory: Memory, gpa: int, size: int) -> None:
    assert flat.load(memory, bytes(size), Mode.LONG, gpa).registers["rip"] == gpa
