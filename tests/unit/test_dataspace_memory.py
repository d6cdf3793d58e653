"""RAM and ROM memory objects: contents, bounds, rights, seals, failures of the kernel."""

import errno
import fcntl
import mmap
import os
import resource
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dataspace.errors import InvalidDataspace, MemoryFailure, OutOfRange
from dataspace.memory import MAX_SIZE, Memory, ram, rom

PAGE = 4096
SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def open_fds() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


@pytest.fixture(autouse=True)
def no_fd_leaks() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before


@pytest.fixture
def memory() -> Iterator[Memory]:
    with ram(4 * PAGE, "dataspaces/1") as made:
        yield made


@contextmanager
def opened(memory: Memory, writable: bool) -> Iterator[int]:
    fd = memory.open(writable)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def soft_limit(kind: int, value: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


@contextmanager
def no_fd_left() -> Iterator[None]:
    lowest_free = os.dup(0)
    os.close(lowest_free)
    with soft_limit(resource.RLIMIT_NOFILE, lowest_free):
        yield


def test_ram_is_zeroed_writable_and_uncommitted(memory: Memory) -> None:
    assert (memory.name, memory.size) == ("dataspaces/1", 4 * PAGE)
    assert (memory.writable, memory.sealed_read_only) == (True, False)
    assert memory.committed() == 0
    assert memory.read(0, 4 * PAGE) == bytes(4 * PAGE)


def test_committed_counts_the_pages_written(memory: Memory) -> None:
    memory.write(PAGE - 1, b"ab")
    assert memory.committed() == 2 * PAGE


def test_write_is_read_back_in_place(memory: Memory) -> None:
    memory.write(5, memoryview(b"-hello-")[1:-1])
    assert memory.read(4, 7) == b"\0hello\0"


@pytest.mark.parametrize(("offset", "size"), [(0, 0), (4 * PAGE, 0), (4 * PAGE - 1, 1)])
def test_access_up_to_the_end(memory: Memory, offset: int, size: int) -> None:
    memory.write(offset, b"x" * size)
    assert memory.read(offset, size) == b"x" * size


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 4 * PAGE + 1), (4 * PAGE, 1), (-1, 1), (2**64 - 1, 2), (2**64, 0)]
)
def test_access_beyond_the_end_is_refused(memory: Memory, offset: int, size: int) -> None:
    with pytest.raises(OutOfRange) as reading:
        memory.read(offset, size)
    with pytest.raises(OutOfRange) as writing:
        memory.write(offset, bytes(size))
    expected = {"offset": offset, "size": size, "limit": 4 * PAGE}
    assert reading.value.numbers == writing.value.numbers == expected
    assert memory.committed() == 0


def test_read_of_negative_size_is_refused(memory: Memory) -> None:
    with pytest.raises(OutOfRange):
        memory.read(PAGE, -1)


def test_short_transfers_are_continued(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    pread, pwrite = os.pread, os.pwrite
    monkeypatch.setattr(os, "pread", lambda fd, size, at: pread(fd, min(size, 3), at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:2], at))
    memory.write(1, b"0123456789")
    assert memory.read(0, 12) == b"\x000123456789\0"


@pytest.mark.parametrize("size", [0, -PAGE, 1, PAGE - 1, PAGE + 1, MAX_SIZE + PAGE])
def test_ram_of_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(InvalidDataspace) as refusal:
        ram(size, "m")
    assert refusal.value.numbers["size"] == size


@pytest.mark.parametrize("name", ["", "a\0b", "a\nb", "\N{SNOWMAN}", "\ud800", "n" * 250])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidDataspace) as refusal:
        ram(PAGE, name)
    assert refusal.value.numbers["length"] == len(name)


def test_longest_name_and_largest_size() -> None:
    with ram(MAX_SIZE, "n" * 249) as memory:
        assert memory.size == MAX_SIZE
        memory.write(MAX_SIZE - 1, b"x")
        assert memory.read(MAX_SIZE - 2, 2) == b"\0x"


def test_descriptions_are_private_and_sealed(memory: Memory) -> None:
    with opened(memory, writable=True) as fd:
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        assert seals & (SIZE_SEALS | fcntl.F_SEAL_WRITE) == SIZE_SEALS
        assert not os.get_inheritable(fd)
        for size in 0, 8 * PAGE:
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_writable_description_shares_the_memory(memory: Memory) -> None:
    with opened(memory, writable=True) as fd, mmap.mmap(fd, 4 * PAGE) as mapping:
        mapping[PAGE : PAGE + 2] = b"hi"
        assert memory.read(PAGE, 2) == b"hi"


def test_read_only_description_admits_no_writing(memory: Memory) -> None:
    memory.write(0, b"seen")
    with opened(memory, writable=False) as fd:
        assert os.pread(fd, 4, 0) == b"seen"
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            mmap.mmap(fd, PAGE)


def test_each_opening_is_a_description_of_its_own(memory: Memory) -> None:
    with opened(memory, writable=True) as one, opened(memory, writable=True) as other:
        os.lseek(one, 100, os.SEEK_SET)
        assert os.lseek(other, 0, os.SEEK_CUR) == 0


def test_held_while_any_description_is_open(memory: Memory) -> None:
    assert not memory.held()
    with opened(memory, writable=True):
        assert memory.held()
        with opened(memory, writable=False):
            assert memory.held()
        assert memory.held()
    assert not memory.held()


def test_held_does_not_trust_what_it_cannot_probe(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.fcntl

    def without_leases(fd: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETLEASE:
            raise OSError(errno.EINVAL, "no leases")
        return real(fd, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", without_leases)
    assert not memory.held()
    os.close(memory.open(False))
    assert memory.held()


def test_probe_survives_an_opener_that_breaks_its_lease(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.fcntl
    signals: list[int] = []
    previous = signal.signal(signal.SIGURG, lambda number, _: signals.append(number))

    def open_within_the_probe(fd: int, command: int, argument: int = 0) -> int:
        if (command, argument) == (fcntl.F_SETLEASE, fcntl.F_UNLCK):
            with pytest.raises(BlockingIOError):
                os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK)
        return real(fd, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", open_within_the_probe)
    try:
        assert not memory.held()
    finally:
        signal.signal(signal.SIGURG, previous)
    # SIGURG in the place of SIGIO, whose default is to kill.
    assert signals == [signal.SIGURG]


def test_close_is_idempotent_and_final(memory: Memory) -> None:
    memory.close()
    memory.close()
    uses: list[Callable[[], object]] = [
        lambda: memory.open(True),
        lambda: memory.read(0, 1),
        lambda: memory.write(0, b"x"),
        memory.committed,
        memory.held,
    ]
    for use in uses:
        with pytest.raises(InvalidDataspace) as refusal:
            use()
        assert refusal.value.numbers == {"why": "is closed", "name": "dataspaces/1"}


def test_descriptions_outlive_the_close(memory: Memory) -> None:
    memory.write(0, b"kept")
    with opened(memory, writable=False) as fd:
        memory.close()
        assert os.pread(fd, 4, 0) == b"kept"


def test_fd_exhaustion_is_a_typed_error(memory: Memory, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    attempts: list[Callable[[], object]] = [
        lambda: memory.open(True),
        lambda: ram(PAGE, "m"),
        lambda: rom(file, PAGE),
    ]
    for attempt in attempts:
        with no_fd_left(), pytest.raises(MemoryFailure) as failure:
            attempt()
        assert failure.value.numbers == {"errno": errno.EMFILE, "name": "EMFILE"}
    assert not memory.held()


def test_file_size_limit_is_a_typed_error() -> None:
    with soft_limit(resource.RLIMIT_FSIZE, PAGE), pytest.raises(MemoryFailure) as failure:
        ram(2 * PAGE, "m")
    assert failure.value.numbers["errno"] == errno.EFBIG


def test_exhausted_memory_is_a_typed_error(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> int:
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(os, "pwrite", exhausted)
    with pytest.raises(MemoryFailure) as failure:
        memory.write(0, b"x")
    assert failure.value.numbers["errno"] == errno.ENOSPC


@pytest.mark.parametrize("kernel_has_it", [True, False])
def test_noexec_seal_is_used_where_the_kernel_has_it(
    kernel_has_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def memfd_create(name: str, flags: int) -> int:
        tried.append(flags)
        if flags & 0x8 and not kernel_has_it:
            raise OSError(errno.EINVAL, "")
        return real(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)

    real = os.memfd_create
    monkeypatch.setattr(os, "memfd_create", memfd_create)
    with ram(PAGE, "m") as memory, opened(memory, writable=True) as fd:
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == SIZE_SEALS
    fallback = [] if kernel_has_it else [os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING]
    assert tried == [os.MFD_CLOEXEC | 0x8, *fallback]
