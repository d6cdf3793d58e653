"""Memory objects: sealed memfds, and the knowledge of whether anybody still holds one.

A `Memory` owns exactly one open file description of its memfd and never gives it away: whoever is
to map the memory gets a description of his own (`Memory.open`). So the write-lease probe of
`Memory.held` can tell, without looking into anybody's /proc, whether one of those lives on in an
fd, a mapping, a message in flight or a fork heir (fcntl_locking(2), F_SETLEASE).

The memory is never mapped here: a page that the kernel cannot supply is an error code to
pread(2) and pwrite(2), but SIGBUS to whoever maps it.
"""

import errno
import fcntl
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from dataspace.errors import (
    InvalidDataspace,
    MemoryFailure,
    NotWritable,
    OutOfRange,
    StillWritable,
)
from dataspace.pages import PAGE_SIZE, round_up
from dataspace.ranges import check_dataspace_size

MAX_SIZE = 2**63 - PAGE_SIZE  # off_t, in whole pages
MAX_NAME = 249  # memfd_create(2)

_MFD_NOEXEC_SEAL = 0x0008  # linux/memfd.h since Linux 6.3; not in Python's os
_SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_FUTURE_WRITE = 0x0010  # F_SEAL_FUTURE_WRITE, linux/fcntl.h since Linux 5.1; not in Python's fcntl
_WRITE_SEALS = fcntl.F_SEAL_WRITE | _FUTURE_WRITE
_COPY_CHUNK = 1 << 20
_FORBIDDEN = "a writable file descriptor, which another client was given"


class Memory:
    """One memory object of whole pages; made by `ram` or `rom`, ended by `close`.

    It owns its file description until `close`, after which every method but `close` raises
    InvalidDataspace. The pages themselves live until the last description handed out is gone, too.
    """

    def __init__(self, description: int, name: str, size: int) -> None:
        """Take over `description`, the only open description of a sealed memfd of `size` bytes."""
        self._description = description
        self._name = name
        self._size = size
        self._sealing = False
        self._handed_out = False

    @property
    def name(self) -> str:
        """The name it was made under, as in /proc/PID/maps."""
        return self._name

    @classmethod
    def resumed(cls, description: int) -> Self:
        """Go on with the memory of a process that ended, by its description, which this takes over."""
        name = Path(f"/proc/self/fd/{description}").readlink().name
        memory = cls(description, name.removesuffix(" (deleted)"), os.fstat(description).st_size)
        memory._handed_out = True
        return memory

    @property
    def description(self) -> int:
        """The fd of its one description, to be passed on to a process that holds it in this one's place:
        what is passed is the same description, which the lease probe does not take for another."""
        return self._owned()

    @property
    def size(self) -> int:
        """Bytes, a multiple of the page size; never changes."""
        return self._size

    @property
    def inode(self) -> int:
        """Its number in the kernel, by which whoever has it mapped has it in /proc/PID/maps."""
        return os.fstat(self._owned()).st_ino

    @property
    def writable(self) -> bool:
        """Whether anybody may write to it from now on. The kernel is asked each time: who has a
        writable description may seal it himself.
        """
        return not (self._sealing or self._seals() & _WRITE_SEALS)

    @property
    def sealed_read_only(self) -> bool:
        """Whether the kernel refuses every write and writable mapping, whoever asks."""
        return bool(self._seals() & fcntl.F_SEAL_WRITE)

    def seal(self) -> None:
        """Freeze the content for good: the kernel refuses every write from now on. Again: nothing.

        The kernel looks at all its pages, and waits up to a fifth of a second for those in use by
        devices: call it in a thread of its own, and `close` after it returned.

        Raises StillWritable where somebody has a writable mapping, or sealing was forbidden.
        """
        fd = self._owned()
        self._sealing = True
        try:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
        except OSError as error:
            if self.sealed_read_only:
                return
            if error.errno not in {errno.EBUSY, errno.EPERM}:
                raise MemoryFailure(error.errno or 0) from error
            why = "a writable mapping of it" if error.errno == errno.EBUSY else _FORBIDDEN
            raise StillWritable(self._name, why) from error
        finally:
            self._sealing = False

    def forbid_sealing(self) -> None:
        """Leave its seals as they are for good. Who is given a writable description may add seals,
        and so take the memory from those who write to it: do this before.
        """
        with suppress(PermissionError):  # forbidden already
            fcntl.fcntl(self._owned(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)

    def open(self, writable: bool) -> int:
        """Return a new open description, close-on-exec; the caller owns the fd and closes it.

        A description opened with `writable=False` allows no write and no writable mapping, and
        the mode 0600 keeps other users from reopening it. It does not keep this process's own
        user from doing so; only a ROM is read-only to him, too.

        Raises NotWritable for a writable description of a ROM, MemoryFailure (EMFILE, ENFILE,
        ENOMEM).
        """
        if writable and not self.writable:
            raise NotWritable(self._name)
        with _kernel_errors():
            fd = _reopen(self._owned(), os.O_RDWR if writable else os.O_RDONLY)
        self._handed_out = True
        return fd

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`; the caller bounds `size` to what he can hold.

        Raises OutOfRange, MemoryFailure.
        """
        fd = self._checked(offset, size)
        pieces = []
        with _kernel_errors():
            while size:
                # At most 2 GiB come at once; the seal on shrinking rules out an end of file.
                pieces.append(os.pread(fd, size, offset))
                offset += len(pieces[-1])
                size -= len(pieces[-1])
        return b"".join(pieces)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` at `offset`.

        Raises OutOfRange or NotWritable before anything is written, and MemoryFailure (ENOMEM,
        ENOSPC), after which a leading part of `data` may have been.
        """
        rest = memoryview(data).cast("B")
        fd = self._checked(offset, len(rest))
        if not self.writable:
            raise NotWritable(self._name)
        with _kernel_errors():
            while rest:
                written = os.pwrite(fd, rest, offset)
                offset += written
                rest = rest[written:]

    def committed(self) -> int:
        """Return the bytes of memory that the kernel has allocated for it so far."""
        return os.fstat(self._owned()).st_blocks * 512

    def held(self) -> bool:
        """Return whether anybody else can still reach the memory.

        A write lease is granted only while there is no other open description of the file. Where
        the kernel has no leases to give, the answer is True once anything was handed out: memory
        must never be refunded while it may be in use.
        """
        fd = self._owned()
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError as error:
            return error.errno == errno.EAGAIN or self._handed_out
        return False

    def close(self) -> None:
        """Give up the description; closing again does nothing.

        Nobody can ask `held` any more after that, so memory that is charged for is closed only
        once it is no longer held.
        """
        if self._description >= 0:
            os.close(self._description)
            self._description = -1

    def __enter__(self) -> Self:
        """Close the memory at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the memory."""
        self.close()

    def _seals(self) -> int:
        return fcntl.fcntl(self._owned(), fcntl.F_GET_SEALS)

    def _owned(self) -> int:
        if self._description < 0:
            raise InvalidDataspace("is closed", name=self._name)
        return self._description

    def _checked(self, offset: int, size: int) -> int:
        if offset < 0 or size < 0 or offset + size > self._size:
            raise OutOfRange(offset, size, self._size)
        return self._owned()


def ram(size: int, name: str, *, sealable: bool = False) -> Memory:
    """Return zeroed memory of `size` bytes, which costs pages only as they are touched.

    `name` (1 to 249 printable ASCII characters) appears in /proc/PID/maps and identifies nothing.
    A `sealable` one can be frozen, also by whoever has a writable description of it.

    Raises InvalidDataspace for size and name, MemoryFailure.
    """
    check_dataspace_size(size)
    if size > MAX_SIZE:
        raise InvalidDataspace("size is beyond what a file can have", size=size, limit=MAX_SIZE)
    with _kernel_errors(), _memfd(name, size) as fd:
        return _sealed(fd, name, size, _SIZE_SEALS | (0 if sealable else fcntl.F_SEAL_SEAL))


def rom(path: Path | str, limit: int, name: str = "rom") -> Memory:
    """Return a read-only copy of the regular file at `path`, padded with zeros to whole pages.

    The last component of `path` must not be a symbolic link; whether the path as a whole may be
    read is the caller's policy. A file of more than `limit` bytes is refused.

    Raises InvalidDataspace for a file that is missing, unreadable, not regular, empty, larger than
    `limit` or changing while it is copied, and for a bad name; MemoryFailure.
    """
    file = _open_regular(path)
    try:
        return rom_of(file, rom_length(file, limit), name)
    finally:
        os.close(file)


def rom_length(file: int, limit: int) -> int:
    """Return the bytes of an open file; raises InvalidDataspace for none, or more than `limit`."""
    length = os.fstat(file).st_size
    if not 0 < length <= min(limit, MAX_SIZE):
        raise InvalidDataspace("file is empty or too large", size=length, limit=limit)
    return length


def rom_of(file: int, length: int, name: str) -> Memory:
    """Return a read-only copy of `length` bytes, which are all of an open file, as `rom` does.

    A copy, as a mapping of the file itself would be SIGBUS to an engine once somebody truncates
    it. Raises InvalidDataspace, MemoryFailure.
    """
    size = round_up(length)
    with _kernel_errors(), _memfd(name, size) as fd:
        _copy(file, fd, length)
        return _sealed(fd, name, size, _SIZE_SEALS | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)


def open_regular(location: int, path: str) -> int:
    """Return a description to read the regular file that an O_PATH one is for; the caller closes it.

    What is read is the very file that was examined. Raises InvalidDataspace, MemoryFailure.
    """
    with _file_errors(path):
        return _readable(location, path)


@contextmanager
def _memfd(name: str, size: int) -> Iterator[int]:
    if not (name.isascii() and name.isprintable() and 0 < len(name) <= MAX_NAME):
        raise InvalidDataspace("name is not 1 to 249 printable ASCII characters", length=len(name))
    fd = _create_memfd(name)
    try:
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


def _create_memfd(name: str) -> int:
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)  # before Linux 6.3


def _sealed(fd: int, name: str, size: int, seals: int) -> Memory:
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    # The kernel does not count the description that memfd_create() makes as a writer, and a write
    # lease on it is refused: the memory keeps one that went through open(2).
    description = _reopen(fd, os.O_RDWR)
    try:
        # Should root open the file in the instant of the probe, the kernel signals the lease
        # holder. The default is SIGIO, which kills; SIGURG is ignored.
        fcntl.fcntl(description, fcntl.F_SETSIG, signal.SIGURG)
        return Memory(description, name, size)
    except BaseException:
        os.close(description)
        raise


def _open_regular(path: Path | str) -> int:
    # O_PATH opens nothing yet: no driver sees it, no writer of a fifo wakes, no link is followed.
    with _file_errors(str(path)):
        location = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return _readable(location, str(path))
        finally:
            os.close(location)


def _readable(location: int, path: str) -> int:
    if not stat.S_ISREG(os.fstat(location).st_mode):
        raise InvalidDataspace("is no regular file", path=path)
    return _reopen(location, os.O_RDONLY | os.O_NONBLOCK)


@contextmanager
def _file_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise MemoryFailure(error.errno) from error
        raise InvalidDataspace(
            "file cannot be opened", path=path, errno=error.errno or 0
        ) from error
    except ValueError as error:  # an embedded null
        raise InvalidDataspace("path cannot be one", path=repr(path)) from error


def _copy(file: int, fd: int, length: int) -> None:
    copied, written = 0, os.fstat(file).st_mtime_ns
    while chunk := os.read(file, min(_COPY_CHUNK, length - copied + 1)):
        copied += len(chunk)
        if copied > length:
            break
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(fd, rest) :]
    if copied != length or os.fstat(file).st_mtime_ns != written:
        raise InvalidDataspace("file changed while it was copied", size=length, copied=copied)


def _reopen(fd: int, flags: int) -> int:
    return os.open(f"/proc/self/fd/{fd}", flags)  # close-on-exec, as all that Python opens


@contextmanager
def _kernel_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MemoryFailure(error.errno or 0) from error
