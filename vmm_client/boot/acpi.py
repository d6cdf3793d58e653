"""The least ACPI that lets a stock system power off and reset: ACPI specification 6.5, chapter 5
(tables) and 20 (AML).

RSDP, XSDT, FADT, FACS and a DSDT that holds the soft-off package. There is no MADT on purpose: the
machine runs on its legacy interrupt controllers. The addresses come from the board.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from vmm_client.boot.entry import GuestMemory
from vmm_client.devices.acpi_power import SLEEP_TYPE_S5

# In the BIOS area, which the memory map reserves, and where a guest without a pointer scans.
TABLES: Final = 0xE_0000

OEM: Final = b"VMSESS"
OEM_TABLE: Final = b"VMSESSPC"
CREATOR: Final = b"VMSS"

FADT_LENGTH: Final = 276
FADT_REVISION: Final = 6
FADT_MINOR: Final = 5
PROFILE_DESKTOP: Final = 1
LEGACY_DEVICES: Final = 1 << 0
NO_VGA: Final = 1 << 2
NO_MSI: Final = 1 << 3

WBINVD: Final = 1 << 0
NO_FIXED_POWER_BUTTON: Final = 1 << 4
NO_FIXED_SLEEP_BUTTON: Final = 1 << 5
TIMER_32_BIT: Final = 1 << 8
RESET_REGISTER: Final = 1 << 10
NO_C2, NO_C3 = 101, 1001  # latencies that say "not supported"


@dataclass(frozen=True, slots=True)
class FixedHardware:
    """Where the board put the ACPI registers: I/O ports; `sci` is an IRQ, `century` an index into
    the CMOS memory. Writing `reset_value` to `reset` resets."""

    sci: int
    power_events: int
    power_control: int
    power_timer: int
    reset: int
    reset_value: int
    century: int


def write_tables(memory: GuestMemory, hardware: FixedHardware) -> int:
    """Writes the tables from `TABLES` and returns the address of the RSDP."""
    rsdp, xsdt, facs, dsdt, fadt = (TABLES + offset for offset in (0, 0x40, 0x80, 0xC0, 0x100))
    memory.write(rsdp, _rsdp(xsdt))
    memory.write(xsdt, _table(b"XSDT", 1, struct.pack("<Q", fadt)))
    memory.write(facs, _facs())
    memory.write(dsdt, _table(b"DSDT", 2, _soft_off()))
    memory.write(fadt, _fadt(hardware, facs, dsdt))
    return rsdp


def _rsdp(xsdt: int) -> bytes:
    """Revision 2: one checksum over the first 20 bytes, one over all 36."""
    first = _with_checksum(b"RSD PTR \0" + OEM + bytes([2]) + bytes(4), 8)
    return _with_checksum(first + struct.pack("<IQB3x", 36, xsdt, 0), 32)


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    header = struct.pack(
        "<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, OEM, OEM_TABLE, 1, CREATOR, 1
    )
    return _with_checksum(header + body, 9)


def _facs() -> bytes:
    return struct.pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2)


def _soft_off() -> bytes:
    r"""Name (\_S5_, Package (4) { S5, S5, 0, 0 }): SLP_TYPa and SLP_TYPb of soft-off."""
    elements = bytes([0x0A, SLEEP_TYPE_S5, 0x0A, SLEEP_TYPE_S5, 0x00, 0x00])
    return b"\x08_S5_\x12" + bytes([len(elements) + 2, 4]) + elements


def _fadt(hardware: FixedHardware, facs: int, dsdt: int) -> bytes:
    """Table 5.9. The 64-bit twins of addresses that fit in 32 bits stay zero."""
    fadt = bytearray(_table(b"FACP", FADT_REVISION, bytes(FADT_LENGTH - 36)))
    struct.pack_into("<IIxBH", fadt, 36, facs, dsdt, PROFILE_DESKTOP, hardware.sci)
    struct.pack_into("<I", fadt, 56, hardware.power_events)
    struct.pack_into("<I", fadt, 64, hardware.power_control)
    struct.pack_into("<I", fadt, 76, hardware.power_timer)
    struct.pack_into("<BBBB", fadt, 88, 4, 2, 0, 4)
    struct.pack_into("<HH", fadt, 96, NO_C2, NO_C3)
    struct.pack_into("<BH", fadt, 108, hardware.century, LEGACY_DEVICES | NO_VGA | NO_MSI)
    flags = WBINVD | NO_FIXED_POWER_BUTTON | NO_FIXED_SLEEP_BUTTON | TIMER_32_BIT | RESET_REGISTER
    struct.pack_into("<I", fadt, 112, flags)
    io_space, byte_access = 1, 1
    struct.pack_into("<BBBBQ", fadt, 116, io_space, 8, 0, byte_access, hardware.reset)
    fadt[128] = hardware.reset_value
    fadt[131] = FADT_MINOR
    return _with_checksum(bytes(fadt), 9)


def _with_checksum(table: bytes, offset: int) -> bytes:
    """Sets the byte at `offset` so that all bytes sum to 0 modulo 256."""
    rest = table[:offset] + b"\0" + table[offset + 1 :]
    return rest[:offset] + bytes([-sum(rest) & 0xFF]) + rest[offset + 1 :]
