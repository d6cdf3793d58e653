"""The ACPI tables, followed as an operating system follows them."""

from __future__ import annotations

import struct

import pytest

from tests.unit.boot_memory import Memory
from vmm_client.boards.pc import FIXED_HARDWARE, PC, Ending
from vmm_client.boot.acpi import write_tables
from vmm_client.boot.linux import HIGH_MEMORY, LOW_MEMORY_END

MIB = 1 << 20


@pytest.fixture
def memory() -> Memory:
    return Memory(2 * MIB)


def tables(memory: Memory) -> dict[bytes, bytes]:
    """RSDP and, by signature, every table reached from it; all checksums checked."""
    pointer = write_tables(memory, FIXED_HARDWARE)
    rsdp = memory.read(pointer, 36)
    assert sum(rsdp) % 256 == sum(rsdp[:20]) % 256 == 0
    assert pointer % 16 == 0
    found = {b"RSDP": rsdp}
    xsdt = read_table(memory, *struct.unpack_from("<Q", rsdp, 24))
    (fadt_gpa,) = struct.unpack_from("<Q", xsdt, 36)
    fadt = read_table(memory, fadt_gpa)
    facs_gpa, dsdt_gpa = struct.unpack_from("<II", fadt, 36)
    assert facs_gpa % 64 == 0
    for table in (xsdt, fadt, read_table(memory, dsdt_gpa)):
        assert sum(table) % 256 == 0
        found[table[:4]] = table
    found[b"FACS"] = memory.read(facs_gpa, 64)
    return found


def read_table(memory: Memory, gpa: int) -> bytes:
    assert LOW_MEMORY_END <= gpa < HIGH_MEMORY
    (length,) = struct.unpack("<I", memory.read(gpa + 4, 4))
    return memory.read(gpa, length)


def test_every_table_is_there_and_no_madt(memory: Memory) -> None:
    assert set(tables(memory)) == {b"RSDP", b"XSDT", b"FACP", b"DSDT", b"FACS"}


def test_tables_do_not_overlap(memory: Memory) -> None:
    pointer = write_tables(memory, FIXED_HARDWARE)
    starts = [memory.bytes.find(name) for name in (b"RSD PTR ", b"XSDT", b"FACS", b"DSDT", b"FACP")]
    assert starts == sorted(starts)
    assert starts[0] == pointer
    ends = [pointer + 36]
    ends += [start + struct.unpack_from("<I", memory.bytes, start + 4)[0] for start in starts[1:]]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))


def test_rsdp(memory: Memory) -> None:
    rsdp = tables(memory)[b"RSDP"]
    assert rsdp[:8] == b"RSD PTR "
    assert (rsdp[15], *struct.unpack_from("<II", rsdp, 16)) == (2, 0, 36)


def test_fadt_describes_the_board(memory: Memory) -> None:
    fadt = tables(memory)[b"FACP"]
    assert (len(fadt), fadt[8]) == (276, 6)
    assert struct.unpack_from("<HI", fadt, 46) == (9, 0)  # SCI, no SMI command port
    assert struct.unpack_from("<I4xI8xI", fadt, 56) == (0x600, 0x604, 0x608)
    assert list(fadt[88:92]) == [4, 2, 0, 4]
    assert fadt[108] == 0x32
    flags = struct.unpack_from("<I", fadt, 112)[0]
    assert flags == 1 << 0 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 10
    assert struct.unpack_from("<BBBBQB", fadt, 116) == (1, 8, 0, 1, 0xCF9, 6)


def test_the_soft_off_package_and_the_control_register_agree(memory: Memory) -> None:
    aml = tables(memory)[b"DSDT"][36:]
    assert aml[:6] == b"\x08_S5_\x12"
    assert aml[6] == len(aml) - 6
    assert aml[7:10] == bytes([4, 0x0A, aml[9]])
    pc = PC(lambda _data: None)
    pc.port_write(FIXED_HARDWARE.power_control, 2, 0x2000 | aml[9] << 10)
    assert pc.ended is Ending.POWER_OFF


def test_the_reset_register_resets_the_board(memory: Memory) -> None:
    port, value = struct.unpack_from("<QB", tables(memory)[b"FACP"], 120)
    pc = PC(lambda _data: None)
    pc.port_write(port, 1, value)
    assert pc.ended is Ending.RESET


def test_facs(memory: Memory) -> None:
    facs = tables(memory)[b"FACS"]
    assert struct.unpack_from("<4sI", facs) == (b"FACS", 64)
    assert facs[32] == 2
