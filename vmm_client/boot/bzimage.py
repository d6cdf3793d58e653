"""The header of a Linux bzImage: Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header"."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from vmm_client.boot.entry import ImageError

HEADER: Final = 0x1F1
MAGIC: Final = b"HdrS"
SECTOR: Final = 512
OLDEST_PROTOCOL: Final = 0x020C  # the first with xloadflags: Linux 3.8
XLF_KERNEL_64: Final = 0x0001
LOADED_HIGH: Final = 0x01
LARGEST_COMMAND_LINE: Final = 0x1000
ENTRY_64: Final = 0x200


@dataclass(frozen=True, slots=True)
class BzImage:
    """A checked bzImage that has the 64-bit entry.

    `header` is the set-up header as it goes into the zero page at 0x1f1, `payload` the
    protected-mode kernel. `load_address` is where it wants to be, with `init_size` bytes of memory
    from there. `command_line_limit` and `initrd_limit` are the greatest length without the final
    zero, and the highest address that the initrd may occupy.
    """

    header: bytes
    payload: bytes
    load_address: int
    init_size: int
    command_line_limit: int
    initrd_limit: int


def parse(image: bytes) -> BzImage:
    """Checks `image`, or raises ImageError saying what is wrong with it."""
    if len(image) < HEADER + 0x80:
        raise ImageError(
            f"kernel image has {len(image)} bytes, less than a boot header (at least "
            f"{HEADER + 0x80}): give a whole bzImage"
        )
    if image[0x202:0x206] != MAGIC or image[0x1FE:0x200] != b"\x55\xaa":
        raise ImageError(
            f"kernel image has {image[0x202:0x206]!r} at 0x202 in the place of {MAGIC!r}: it is "
            "no bzImage (an ELF vmlinux will not do)"
        )
    protocol = _u16(image, 0x206)
    if protocol < OLDEST_PROTOCOL:
        raise ImageError(
            f"kernel speaks boot protocol {_version(protocol)}, at least "
            f"{_version(OLDEST_PROTOCOL)} is needed: use Linux 3.8 or later"
        )
    _check_loads_high_in_64_bit(image)
    header = _header(image)
    return BzImage(
        header=header,
        payload=_payload(image),
        load_address=_u64(image, 0x258),
        init_size=_u32(image, 0x260),
        command_line_limit=min(_u32(image, 0x238), LARGEST_COMMAND_LINE),
        initrd_limit=_u32(image, 0x22C),
    )


def _check_loads_high_in_64_bit(image: bytes) -> None:
    if not image[0x211] & LOADED_HIGH:
        raise ImageError(f"loadflags {image[0x211]:#x} lack LOADED_HIGH: a zImage, give a bzImage")
    flags = _u16(image, 0x236)
    if not flags & XLF_KERNEL_64:
        raise ImageError(
            f"xloadflags {flags:#x} lack XLF_KERNEL_64: a 32-bit kernel, give an amd64 one"
        )


def _header(image: bytes) -> bytes:
    end = 0x202 + image[0x201]
    if not 0x264 <= end <= 0x290:
        raise ImageError(
            f"boot header ends at {end:#x}, outside 0x264 to 0x290: the image is damaged"
        )
    return image[HEADER:end]


def _payload(image: bytes) -> bytes:
    """All behind the set-up sectors; syssize says, in paragraphs, how much there must be."""
    start = ((image[HEADER] or 4) + 1) * SECTOR
    wanted = _u32(image, 0x1F4) * 16
    payload = image[start:]
    if not wanted or len(payload) < wanted - 15:
        raise ImageError(
            f"kernel image is truncated: {len(payload)} bytes behind the set-up sectors, its "
            f"header says {wanted}: fetch it again"
        )
    if len(payload) <= ENTRY_64:
        raise ImageError(f"kernel of {len(payload)} bytes ends before its entry at {ENTRY_64:#x}")
    return payload


def _version(protocol: int) -> str:
    return f"{protocol >> 8}.{protocol & 0xFF:02d}"


def _u16(image: bytes, offset: int) -> int:
    return int(struct.unpack_from("<H", image, offset)[0])


def _u32(image: bytes, offset: int) -> int:
    return int(struct.unpack_from("<I", image, offset)[0])


def _u64(image: bytes, offset: int) -> int:
    return int(struct.unpack_from("<Q", image, offset)[0])
