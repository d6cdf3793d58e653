"""Initial file systems from one static busybox: the cpio "newc" format of the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst, made in memory.

The archive is not compressed: a guest on a software CPU spends longer on inflating it than the
host on handing over two megabytes.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Final

MAGIC: Final = b"070701"
TRAILER: Final = "TRAILER!!!"
DIRECTORIES: Final = ("bin", "dev", "etc", "proc", "sys", "tmp")

# Device numbers of the kernel's Documentation/admin-guide/devices.txt.
CONSOLE: Final = (5, 1)
NULL: Final = (1, 3)
SERIAL: Final = (4, 64)

_PROLOGUE: Final = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
"""

DEMO: Final = (
    _PROLOGUE
    + """\
echo "vmsession guest: $(uname -a)"
echo "cpu: $(sed -n 's/^model name[^:]*: //p;T;q' /proc/cpuinfo)"
echo "memory: $(sed -n 's/^MemTotal: *//p' /proc/meminfo)"
echo "sorted: $(seq 1 5000 | sort -r | sha256sum | cut -c 1-16)"
rtc() { cat /sys/class/rtc/rtc0/since_epoch; }
uptime() { cut -d ' ' -f 1 /proc/uptime; }
rtc=$(rtc) up=$(uptime)
sleep 2
up_after=$(uptime) rtc_after=$(rtc)
echo "sleep 2: $(echo "$up_after - $up" | bc) s by the kernel's clock," \\
    "$((rtc_after - rtc)) s by the real-time clock"
echo "powering off"
poweroff -f
"""
)

SHELL: Final = (
    _PROLOGUE
    + """\
echo "vmsession guest: $(uname -a)"
echo "exit or poweroff -f ends the machine"
setsid cttyhack sh -i </dev/ttyS0 >/dev/ttyS0 2>&1
poweroff -f
"""
)


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def build(busybox: bytes, script: str = DEMO) -> bytes:
    """An archive whose /init is `script`, run by `busybox`; its stdio is /dev/console."""
    members = [
        *(_Member(name, stat.S_IFDIR | 0o755) for name in DIRECTORIES),
        _Member("dev/console", stat.S_IFCHR | 0o600, device=CONSOLE),
        _Member("dev/null", stat.S_IFCHR | 0o666, device=NULL),
        _Member("dev/ttyS0", stat.S_IFCHR | 0o600, device=SERIAL),
        _Member("bin/busybox", stat.S_IFREG | 0o755, busybox),
        _Member("init", stat.S_IFREG | 0o755, script.encode()),
        _Member(TRAILER, 0),
    ]
    return b"".join(_encode(member, inode) for inode, member in enumerate(members, 1))


def _encode(member: _Member, inode: int) -> bytes:
    """Header of 13 eight-digit hex fields, name and data, each padded to four bytes."""
    name = member.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(member.mode) else 1
    fields = (
        *(inode, member.mode, 0, 0, links, 0, len(member.data), 0, 0),
        *(*member.device, len(name), 0),
    )
    header = MAGIC + b"".join(b"%08x" % field for field in fields)
    return _padded(header + name) + _padded(member.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
