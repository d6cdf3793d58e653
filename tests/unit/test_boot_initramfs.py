"""The cpio archive, read back by an independent reader of the newc format."""

from __future__ import annotations

import shutil
import stat
import subprocess
from typing import NamedTuple

import pytest

from vmm_client.boot.initramfs import DEMO, SHELL, build


class Member(NamedTuple):
    mode: int
    links: int
    data: bytes
    device: tuple[int, int]


def unpack(archive: bytes) -> dict[str, Member]:
    members: dict[str, Member] = {}
    inodes = set()
    offset = 0
    while True:
        assert archive[offset : offset + 6] == b"070701"
        fields = [int(archive[offset + 6 + 8 * i : offset + 14 + 8 * i], 16) for i in range(13)]
        inode, mode, _, _, links, _, size, _, _, major, minor, name_size, check = fields
        assert check == 0
        name = archive[offset + 110 : offset + 110 + name_size]
        assert name.endswith(b"\0")
        start = offset + (110 + name_size + 3) // 4 * 4
        data = archive[start : start + size]
        assert len(data) == size
        offset = start + (size + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            assert offset == len(archive)
            return members
        assert inode not in inodes
        inodes.add(inode)
        members[name[:-1].decode()] = Member(mode, links, data, (major, minor))


@pytest.mark.parametrize("size", range(4))
def test_init_and_busybox_are_whole_and_executable(size: int) -> None:
    members = unpack(build(b"b" * size, "#!x"))
    assert members["bin/busybox"] == Member(stat.S_IFREG | 0o755, 1, b"b" * size, (0, 0))
    assert members["init"] == Member(stat.S_IFREG | 0o755, 1, b"#!x", (0, 0))


def test_init_has_a_console_to_be_born_with() -> None:
    members = unpack(build(b""))
    assert members["dev/console"] == Member(stat.S_IFCHR | 0o600, 1, b"", (5, 1))
    assert members["dev/ttyS0"].device == (4, 64)
    assert members["dev/null"] == Member(stat.S_IFCHR | 0o666, 1, b"", (1, 3))


def test_directories_come_before_what_is_in_them() -> None:
    names = list(unpack(build(b"")))
    for name in names:
        parent = name.rpartition("/")[0]
        assert not parent or names.index(parent) < names.index(name)
    assert unpack(build(b""))["proc"] == Member(stat.S_IFDIR | 0o755, 2, b"", (0, 0))


@pytest.mark.parametrize("script", [DEMO, SHELL])
def test_scripts_are_good_shell_and_power_off(script: str) -> None:
    shell = shutil.which("sh")
    assert shell is not None
    subprocess.run([shell, "-n"], input=script.encode(), check=True, timeout=10)
    assert script.startswith("#!/bin/busybox sh\n")
    assert script.endswith("\npoweroff -f\n")
