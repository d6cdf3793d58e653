"""The 64-bit Linux boot protocol, with made-up kernels."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.boot_memory import Memory
from vmm_client.boot import bzimage, linux
from vmm_client.boot.entry import ImageError

MIB = 1 << 20
LOAD = 16 * MIB
INIT_SIZE = 8 * MIB
KERNEL_END = LOAD + INIT_SIZE


def bzimage_file(payload: bytes = b"\x90" * 0x1000, **fields: int) -> bytes:
    """A bzImage with one set-up sector; `fields` are header fields to be different."""
    values = {
        "setup_sects": 1,
        "syssize": -(-len(payload) // 16),
        "boot_flag": 0xAA55,
        "jump": 0x6AEB,
        "header": int.from_bytes(b"HdrS", "little"),
        "version": 0x020F,
        "loadflags": 0x01,
        "initrd_addr_max": 0x7FFF_FFFF,
        "xloadflags": 0x0001,
        "cmdline_size": 2047,
        "pref_address": LOAD,
        "init_size": INIT_SIZE,
        **fields,
    }
    layout = {
        "setup_sects": (0x1F1, "B"),
        "syssize": (0x1F4, "I"),
        "boot_flag": (0x1FE, "H"),
        "jump": (0x200, "H"),
        "header": (0x202, "I"),
        "version": (0x206, "H"),
        "loadflags": (0x211, "B"),
        "initrd_addr_max": (0x22C, "I"),
        "xloadflags": (0x236, "H"),
        "cmdline_size": (0x238, "I"),
        "pref_address": (0x258, "Q"),
        "init_size": (0x260, "I"),
    }
    setup = bytearray(1024)
    for name, value in values.items():
        offset, code = layout[name]
        struct.pack_into(f"<{code}", setup, offset, value)
    return bytes(setup) + payload


@pytest.fixture
def memory() -> Memory:
    return Memory(32 * MIB)


def zero_page(memory: Memory) -> bytes:
    return memory.read(linux.ZERO_PAGE, 4096)


def test_enters_the_kernel_at_its_64_bit_entry(memory: Memory) -> None:
    registers = linux.load(memory, bzimage_file()).registers
    assert (registers["rip"], registers["rsi"]) == (LOAD + 0x200, linux.ZERO_PAGE)
    assert registers["rflags"] == 2
    assert memory.read(LOAD, 0x1000) == b"\x90" * 0x1000


def test_the_zero_page(memory: Memory) -> None:
    kernel = bzimage_file()
    linux.load(memory, kernel, command_line="quiet", initrd=b"i" * 5000, rsdp=0xE0000)
    page = zero_page(memory)
    assert page[0x1F1:0x210] == kernel[0x1F1:0x210]
    assert page[0x210] == 0xFF
    assert not any(page[0x26C:0x290])
    code32, ramdisk, ramdisk_size = struct.unpack_from("<III", page, 0x214)
    assert (code32, ramdisk, ramdisk_size) == (LOAD, 32 * MIB - 0x2000, 5000)
    assert memory.read(ramdisk, 5001) == b"i" * 5000 + b"\0"
    (line,) = struct.unpack_from("<I", page, 0x228)
    assert memory.read(line, 6) == b"quiet\0"
    assert struct.unpack_from("<Q", page, 0x70) == (0xE0000,)


def test_the_memory_map(memory: Memory) -> None:
    linux.load(memory, bzimage_file())
    page = zero_page(memory)
    count = page[0x1E8]
    entries = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * index) for index in range(count)]
    assert entries == [
        (0, 0x9FC00, 1),
        (0x9FC00, 0x60400, 2),
        (MIB, 31 * MIB, 1),
    ]


def test_the_memory_map_goes_on_behind_the_hole(memory: Memory) -> None:
    memory.size = 4 << 30
    assert linux.e820(memory)[-1] == (MIB, 0xFEC0_0000 - MIB, 1)
    memory.high_size = 4096
    assert linux.e820(memory)[-2:] == [(MIB, 0xFEC0_0000 - MIB, 1), (4 << 30, 4096, 1)]


def test_no_initrd(memory: Memory) -> None:
    linux.load(memory, bzimage_file())
    assert struct.unpack_from("<II", zero_page(memory), 0x218) == (0, 0)


def test_the_initrd_stays_below_the_kernels_limit(memory: Memory) -> None:
    limit = KERNEL_END + MIB
    linux.load(memory, bzimage_file(initrd_addr_max=limit - 1), initrd=bytes(MIB))
    assert struct.unpack_from("<II", zero_page(memory), 0x218) == (KERNEL_END, MIB)


def test_an_initrd_larger_than_the_memory_is_refused(memory: Memory) -> None:
    room = 32 * MIB - KERNEL_END
    linux.load(memory, bzimage_file(), initrd=bytes(room))
    with pytest.raises(ImageError, match=f"initrd of {room + 1} bytes, there are {room} between"):
        linux.load(memory, bzimage_file(), initrd=bytes(room + 1))


def test_nothing_is_written_when_the_load_is_refused(memory: Memory) -> None:
    with pytest.raises(ImageError):
        linux.load(memory, bzimage_file(), initrd=bytes(33 * MIB))
    assert not any(memory.bytes)


def test_the_command_line_has_the_kernels_limit(memory: Memory) -> None:
    linux.load(memory, bzimage_file(cmdline_size=9), command_line="123456789")
    with pytest.raises(ImageError, match="command line of 10 bytes, this kernel takes 9"):
        linux.load(memory, bzimage_file(cmdline_size=9), command_line="12345678é")


def test_the_command_line_may_be_any_bytes(memory: Memory) -> None:
    linux.load(memory, bzimage_file(), command_line=b"x=\xff".decode(errors="surrogateescape"))
    assert memory.read(linux.COMMAND_LINE, 5) == b"x=\xff\0\0"


def test_the_command_line_cannot_end_early(memory: Memory) -> None:
    with pytest.raises(ImageError, match="NUL at 5"):
        linux.load(memory, bzimage_file(), command_line="quiet\0init=/bin/sh")


@pytest.mark.parametrize("size", [1, 2, 24])
def test_a_vm_too_small_for_the_kernel_is_told_what_it_needs(size: int) -> None:
    with pytest.raises(ImageError, match="give it at least 25 MiB"):
        linux.load(Memory(size * MIB), bzimage_file(init_size=INIT_SIZE + 1))
    linux.load(Memory(24 * MIB), bzimage_file())


def test_a_payload_larger_than_init_size_counts(memory: Memory) -> None:
    with pytest.raises(ImageError, match="at least 33 MiB"):
        linux.load(memory, bzimage_file(bytes(16 * MIB + 16)))


def test_a_kernel_that_wants_low_memory_is_refused(memory: Memory) -> None:
    with pytest.raises(ImageError, match="kernel needs 0x10000"):
        linux.load(memory, bzimage_file(pref_address=0x10000, init_size=0))


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (b"", "has 0 bytes"),
        (b"\x7fELF" + bytes(0x26C), "has 624 bytes"),
        (b"\x7fELF" + bytes(4096), "no bzImage"),
        (bzimage_file(header=0), "no bzImage"),
        (bzimage_file(boot_flag=0), "no bzImage"),
        (bzimage_file(version=0x020B), r"boot protocol 2\.11, at least 2\.12"),
        (bzimage_file(loadflags=0x80), "loadflags 0x80 lack LOADED_HIGH"),
        (bzimage_file(xloadflags=0x7E), "xloadflags 0x7e lack XLF_KERNEL_64"),
        (bzimage_file(jump=0xFFEB), "boot header ends at 0x301"),
        (bzimage_file(jump=0x00EB), "boot header ends at 0x202"),
        (bzimage_file()[:-16], "truncated: 4080 bytes .* says 4096"),
        (bzimage_file(syssize=0), "truncated: 4096 bytes .* says 0"),
        (bzimage_file(setup_sects=200), "truncated: 0 bytes"),
        (bzimage_file(b"\x90" * 0x200), "kernel of 512 bytes ends before its entry"),
    ],
)
def test_what_is_no_usable_kernel_is_refused(image: bytes, complaint: str) -> None:
    with pytest.raises(ImageError, match=complaint):
        bzimage.parse(image)


@given(st.binary(max_size=2048), st.integers(0, 0x290), st.binary(min_size=1, max_size=16))
def test_damaged_kernels_give_no_other_error(tail: bytes, offset: int, patch: bytes) -> None:
    image = bytearray(bzimage_file(tail))
    image[offset : offset + len(patch)] = patch
    try:
        image_parsed = bzimage.parse(bytes(image))
    except ImageError:
        return
    assert len(image_parsed.payload) > bzimage.ENTRY_64
