"""The parts of `vmm diff` that need no engine."""

from __future__ import annotations

import struct

import pytest

from dataspace.registers import Segment
from dataspace.vcpu_page import Reason
from vmm_client.cpuid import CpuidLeaf
from vmm_client.diff import fpu
from vmm_client.diff.answers import answers
from vmm_client.diff.code import Instruction
from vmm_client.diff.compare import Difference, differences, memory_difference
from vmm_client.diff.cpu_model import common
from vmm_client.diff.disassembly import disassemble
from vmm_client.diff.lockstep import Outcome
from vmm_client.diff.paging import Paging
from vmm_client.diff.report import lines, record
from vmm_client.diff.stop import Access, Registers, Stop
from vmm_client.errors import NotAttached

LONG = Segment(0x10, 0xA9B, 0xFFFFFFFF, 0)


class Memory:
    """64 KiB."""

    size = 1 << 16
    high_size = 0

    def __init__(self) -> None:
        self.bytes = bytearray(self.size)

    def read(self, gpa: int, size: int) -> bytes:
        if gpa + size > self.size:
            raise NotAttached(gpa, size, gpa)
        return bytes(self.bytes[gpa : gpa + size])

    def write(self, gpa: int, data: bytes) -> None:
        self.bytes[gpa : gpa + len(data)] = data

    def entry(self, at: int, value: int, size: int = 8) -> None:
        self.write(at, value.to_bytes(size, "little"))


def stop(registers: Registers | None = None, **changes: object) -> Stop:
    values: Registers = {"cs": LONG, "rip": 0, "rflags": 2, "cr0": 0x80000011, **(registers or {})}
    made = Stop(Reason.HLT, None, values, {}, [])
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def found(first: Stop, second: Stop, flags: int = 0) -> list[str]:
    return [each.what for each in differences(first, second, flags, frozenset())]


def test_equal_stops_have_no_differences() -> None:
    assert found(stop({"rax": 1, "tsc": 5}), stop({"rax": 1, "tsc": 9, "cr8": 3})) == []


def test_every_kind_of_difference_is_told() -> None:
    read = Access(Reason.PORT, 0x60, 1, True, 7)
    first = stop({"rax": 1}, accesses=[read], fpu={"xmm0": 1, "st0": 2})
    second = stop({"rax": 2}, reason=Reason.DEBUG, fpu={"xmm0": 2})
    assert differences(first, second, 0, frozenset()) == [
        Difference("access 0", "PORT read 0x60 size 1 value 0x7", "none"),
        Difference("exit", "HLT", "DEBUG"),
        Difference("rax", "0x1", "0x2"),
        Difference("xmm0", "0x1", "0x2"),
    ]


def test_the_address_of_a_fault_counts() -> None:
    one, other = (stop(reason=Reason.MEMORY_FAULT, address=at) for at in (1, 2))
    assert found(one, other) == ["exit address"]


@pytest.mark.parametrize(("other", "names"), [(0x10002, []), (0x12, ["rflags"]), (0x42, [])])
def test_flags_are_compared_but_those_ignored(other: int, names: list[str]) -> None:
    assert found(stop(), stop({"rflags": other}), 0x40) == names


def test_segments_count_as_far_as_they_are_used() -> None:
    absent = Segment(0, 0x0, 0xFFFF, 0), Segment(0, 0x1, 0, 5)
    assert found(stop({"ldtr": absent[0]}), stop({"ldtr": absent[1]})) == []
    assert found(stop({"ds": LONG}), stop({"ds": LONG._replace(base=1)})) == ["ds"]
    tables = Segment(0, 0x93, 7, 0x100), Segment(0, 0, 7, 0x100)
    assert found(stop({"gdtr": tables[0]}), stop({"gdtr": tables[1]})) == []
    real = {"cr0": 0x10}
    code = Segment(0, 0x9B, 0xFFFF, 0), Segment(0, 0x93, 0xFFFF, 0)
    assert found(stop({**real, "cs": code[0]}), stop({**real, "cs": code[1]})) == []
    assert found(stop({"cs": code[0]}), stop({"cs": code[1]})) == ["cs"]


@pytest.mark.parametrize("at", [0, 1, 255, 256, 65535, 65536, 70000, 99999])
def test_the_first_byte_that_differs(at: int) -> None:
    first, second = bytearray(100_000), bytearray(100_000)
    assert memory_difference(memoryview(first), memoryview(second)) is None
    second[at] = second[99_999] = 1
    difference = memory_difference(memoryview(first), memoryview(second))
    assert difference is not None
    assert difference.what == f"memory {at:#x}"
    assert difference.second.startswith("01")


def area(present: int) -> bytes:
    """XMM3 is 0x33, ST(0) is 5 in the physical register 6, ST(1) empty."""
    data = bytearray(832)
    struct.pack_into("<HHB", data, 0, 0x27F, 6 << 11 | 0x4100, 1 << 6)
    struct.pack_into("<I", data, 24, 0x1F81)
    data[32] = 5
    data[48] = 9
    data[160 + 48] = 0x33
    data[576] = 0x44
    struct.pack_into("<Q", data, 512, present)
    return bytes(data)


def test_the_fpu_area_by_name() -> None:
    named = fpu.by_name(area(7))
    assert (named["fcw"], named["fsw"], named["ftw"]) == (0x27F, 6 << 11, 0x40)
    assert (named["st0"], named["xmm3"], named["ymm0h"], named["mxcsr"]) == (5, 0x33, 0x44, 0x1F81)
    assert "st1" not in named


def test_a_component_that_is_not_present_has_its_initial_values() -> None:
    named = fpu.by_name(area(0))
    assert (named["fcw"], named["fsw"], named["ftw"], named["xmm3"]) == (0x37F, 0, 0, 0)
    assert named["ymm0h"] == 0
    assert "ymm0h" not in fpu.by_name(area(7)[:576])
    assert fpu.by_name(fpu.initial(832)) == {**named, "mxcsr": 0x1F80}
    assert fpu.by_name(b"") == {}


def test_paging_of_every_kind() -> None:
    memory = Memory()
    assert Paging(0x11, 0, 0, 0).physical(memory, 0x1234) == 0x1234
    memory.entry(0x1000, 0x2001, 4)
    memory.entry(0x2004, 0x5001, 4)
    assert Paging(0x80000001, 0x1000, 0, 0).physical(memory, 0x1234) == 0x5234
    assert Paging(0x80000001, 0x1000, 0, 0).physical(memory, 0x2234) is None
    memory.entry(0x3000, 0x4001)
    memory.entry(0x4008, 0x0060_0081)
    assert Paging(0x80000001, 0x3000, 0x20, 0).physical(memory, 0x20_1234) == 0x60_1234
    memory.entry(0x6000, 0x3001)
    assert Paging(0x80000001, 0x6000, 0x20, 0x500).physical(memory, 0x20_1234) == 0x60_1234
    assert Paging(0x80000001, 0x6000, 0x20, 0x500).physical(memory, 1 << 39) is None
    memory.entry(0x3000, 0x7001)
    memory.entry(0x7008, 0x0080_0081)
    assert Paging(0x80000001, 0x6000, 0x20, 0x500).physical(memory, 0x20_1234) == 0x80_1234
    assert Paging(0x80000001, 0x10000, 0x20, 0x500).physical(memory, 0) is None


def test_answers_are_those_of_the_seed() -> None:
    one, same, other = answers(1), answers(1), answers(2)
    first = [next(one) for _ in range(3)]
    assert first == [next(same) for _ in range(3)]
    assert len({*first, next(other)}) == 4
    assert max(first) < 1 << 64


def test_one_processor_for_both() -> None:
    first = [CpuidLeaf(1, None, 0x11, 2, 0b110, 0b11), CpuidLeaf(9, None, 0, 0, 0, 0)]
    second = [CpuidLeaf(1, None, 0x22, 3, 0b011, 0b10)]
    assert common(first, second) == [CpuidLeaf(1, None, 0x11, 2, 0b010, 0b10)]


def test_the_report_for_people_and_programs() -> None:
    history = (Instruction(0x7C00, 0x7C00, b"\x90", 16),)
    alike = Outcome(("a", "b"), 1, Reason.HLT, (), history)
    assert list(lines(alike, "exit")) == ["a and b agree over 1 exit, until HLT"]
    differ = Outcome(("a", "b"), 3, Reason.DEBUG, (Difference("rax", "0x1", "0x22"),), history)
    head, instruction, empty, *table = lines(differ, "instruction")
    assert head == "a and b differ after 3 instructions"
    assert instruction.split()[:2] == ["0x7c00", "90"]
    assert [empty, *table] == ["", "       a    b", "  rax  0x1  0x22"]
    assert record(differ, "instruction")["differences"] == [
        {"what": "rax", "values": ["0x1", "0x22"]}
    ]


def test_instructions_are_disassembled() -> None:
    pytest.importorskip("capstone", reason="Capstone is not installed")
    line = disassemble(Instruction(0x10, 0x10, bytes.fromhex("31c0f4"), 16))
    assert (line.code, line.text) == (b"\x31\xc0", "xor ax, ax")
    assert disassemble(Instruction(0, 0, b"", 64)).text == ""
