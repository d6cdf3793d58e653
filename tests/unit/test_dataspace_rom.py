"""ROM: a sealed copy of a regular file, and of nothing else."""

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataspace.errors import InvalidDataspace, MemoryFailure, NotWritable
from dataspace.memory import rom

PAGE = 4096


def open_fds() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


@pytest.fixture(autouse=True)
def no_fd_leaks() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "firmware"
    path.write_bytes(b"\xea" * (PAGE + 904))
    return path


def test_rom_is_the_file_padded_to_pages(file: Path) -> None:
    with rom(file, PAGE + 904, name="bios") as memory:
        assert (memory.name, memory.size) == ("bios", 2 * PAGE)
        assert (memory.writable, memory.sealed_read_only) == (False, True)
        assert memory.read(0, 2 * PAGE) == b"\xea" * (PAGE + 904) + bytes(PAGE - 904)


def test_file_larger_than_one_copy_step(tmp_path: Path) -> None:
    content = os.urandom((2 << 20) + 1)
    (tmp_path / "large").write_bytes(content)
    with rom(str(tmp_path / "large"), 4 << 20) as memory:
        assert memory.read(0, len(content)) == content


def test_later_changes_of_the_file_do_not_reach_the_rom(file: Path) -> None:
    with rom(file, 1 << 20) as memory:
        file.write_bytes(b"")
        assert memory.read(PAGE, 904) == b"\xea" * 904


def test_nobody_can_write_to_it(file: Path) -> None:
    with rom(file, 1 << 20, name="bios") as memory:
        with pytest.raises(NotWritable) as writing:
            memory.write(0, b"x")
        with pytest.raises(NotWritable) as opening:
            memory.open(True)
        assert writing.value.numbers == opening.value.numbers == {"name": "bios"}
        fd = memory.open(False)
        # The very user who owns the memfd may reopen it, and still cannot write.
        own = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        try:
            with pytest.raises(PermissionError):
                os.pwrite(own, b"x", 0)
            with pytest.raises(PermissionError):
                mmap.mmap(own, PAGE)
            assert memory.held()
        finally:
            os.close(fd)
            os.close(own)
        assert not memory.held()


def test_file_of_the_limit_is_taken_and_one_more_byte_refused(file: Path) -> None:
    rom(file, PAGE + 904).close()
    with pytest.raises(InvalidDataspace) as refusal:
        rom(file, PAGE + 903)
    assert refusal.value.numbers["size"] == PAGE + 904
    assert refusal.value.numbers["limit"] == PAGE + 903


def test_empty_file_is_refused(file: Path) -> None:
    file.write_bytes(b"")
    with pytest.raises(InvalidDataspace, match="empty"):
        rom(file, PAGE)


def test_only_regular_files(file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(file)
    os.mkfifo(tmp_path / "fifo")
    for path in tmp_path / "link", tmp_path / "fifo", tmp_path, Path("/dev/zero"):
        with pytest.raises(InvalidDataspace) as refusal:
            rom(path, 1 << 20)
        assert refusal.value.numbers == {"why": "is no regular file", "path": str(path)}


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataspace) as refusal:
        rom(tmp_path / "none", 1 << 20)
    assert refusal.value.numbers["errno"] == errno.ENOENT


def test_path_with_a_null_is_refused() -> None:
    with pytest.raises(InvalidDataspace) as refusal:
        rom("/etc/\0passwd", 1 << 20)
    assert refusal.value.numbers["path"] == r"'/etc/\x00passwd'"


@pytest.mark.parametrize("length", [PAGE, 2 * PAGE])
def test_file_that_changes_meanwhile_is_refused(
    file: Path, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = os.read

    def read_after_change(fd: int, size: int) -> bytes:
        os.truncate(file, length)
        return read(fd, size)

    monkeypatch.setattr(os, "read", read_after_change)
    with pytest.raises(InvalidDataspace, match="changed while it was copied"):
        rom(file, 1 << 20)


def test_file_that_is_written_meanwhile_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be a mixture of the old and the new."""
    os.utime(file, (0, 0))
    read = os.read

    def read_after_change(fd: int, size: int) -> bytes:
        with file.open("r+b") as again:
            again.write(b"new")
        return read(fd, size)

    monkeypatch.setattr(os, "read", read_after_change)
    with pytest.raises(InvalidDataspace, match="changed while it was copied"):
        rom(file, 1 << 20)


def test_failing_disk_is_a_typed_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> bytes:
        raise OSError(errno.EIO, "")

    monkeypatch.setattr(os, "read", failing)
    with pytest.raises(MemoryFailure) as failure:
        rom(file, 1 << 20)
    assert failure.value.numbers["errno"] == errno.EIO
