"""Memory that this client has in core, mapped here when it is first touched."""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vmsession.v1.dataspace_pb2 import (
    Dataspace,
    FreeDataspaceRequest,
    ReadDataspaceRequest,
    SealDataspaceRequest,
    ShareDataspaceRequest,
    WriteDataspaceRequest,
)

from vmm_client.errors import BadFd, Closed, CoreUnavailable, ReadOnly, Refused
from vmm_client.share import Share

if TYPE_CHECKING:
    from vmm_client.connection import Connection
    from vmm_client.session import Session


TRANSFER_BYTES = 1 << 20  # of one ReadDataspace or WriteDataspace


class Ram:
    """A dataspace of `size` bytes, whole pages: RAM, a ROM, or what another client shares. Owns its
    mapping, and the memory in core, until `close`; a context manager. Any thread."""

    def __init__(self, connection: Connection, dataspace: Dataspace) -> None:
        self.name = dataspace.name
        self.size = dataspace.size
        self.writable = dataspace.writable
        self.origin = dataspace.origin
        self.held = False
        self._connection = connection
        self._lock = threading.Lock()
        self._view: memoryview | None = None
        self._through_core = False
        self._sessions: dict[Session, None] = {}
        self._closed = False

    @property
    def view(self) -> memoryview:
        """All of it, to be read and written in place, or to be read only; mapped at the first use.

        What is written like this is unknown to the engines: tell them with `written`. Views kept
        beyond `close` keep the memory, and its charge, with them.

        Raises Refused (INVALID_DATASPACE: a share of a part has none, see `read` and `write`),
        CoreUnavailable, BadFd, Closed, OSError (ENOMEM).
        """
        if self._view is None:
            with self._lock:
                self._view = self._view or self._mapped()
        return self._view

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`. Raises ValueError beyond the end, and see `view`."""
        self._check(offset, size)
        if self._mappable():
            return self.view[offset : offset + size].tobytes()
        return b"".join(
            self._connection.rpc.call(
                self._connection.dataspaces.ReadDataspace,
                ReadDataspaceRequest(name=self.name, offset=at, size=length),
            ).data
            for at, length in _transfers(offset, size)
        )

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` at `offset`, for the guests to see. Raises ReadOnly, and as `read` does.

        The guests of others who share the memory see it as well, but engines may run code that they
        decoded before: where it is code to them, `store` it.
        """
        size = memoryview(data).nbytes
        self._check(offset, size)
        if not self._mappable():
            self.store(offset, data)
            return
        if self.view.readonly:
            raise ReadOnly(self.name)
        self.view[offset : offset + size] = memoryview(data).cast("B")
        self.written(offset, size)

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write through core, which tells the engines of all who share the memory before this returns.

        Raises Refused: see WriteDataspace in dataspace.proto; ValueError beyond the end.
        """
        rest = memoryview(data).cast("B")
        self._check(offset, rest.nbytes)
        for at, length in _transfers(offset, rest.nbytes):
            piece = bytes(rest[at - offset : at - offset + length])
            request = WriteDataspaceRequest(name=self.name, offset=at, data=piece)
            self._connection.rpc.call(self._connection.dataspaces.WriteDataspace, request)

    def seal(self) -> None:
        """Freeze the content for good: it can only be read and attached read-only from now on.

        Views of it that were kept are in the way, as every writable attachment and mapping is. Raises
        Refused: see SealDataspace in dataspace.proto.
        """
        with self._lock:
            self._view = None  # it is mapped writable
        request = SealDataspaceRequest(name=self.name)
        answer = self._connection.rpc.call(self._connection.dataspaces.SealDataspace, request)
        self.writable = answer.dataspace.writable

    def share(
        self, uid: int, pid: int = 0, *, offset: int = 0, size: int = 0, read_only: bool = False
    ) -> Share:
        """Offer it, or `size` bytes from `offset` (0: the rest), to a user, or to one process of his,
        who takes it with `Connection.accept` by the name of the offer.

        Only the whole can be mapped by the receiver's process; a part can be attached, read and written
        by it. Raises Refused: see ShareDataspace in dataspace.proto.
        """
        request = ShareDataspaceRequest(
            dataspace=self.name, uid=uid, pid=pid, offset=offset, size=size, read_only=read_only
        )
        answer = self._connection.rpc.call(self._connection.dataspaces.ShareDataspace, request)
        return Share(self._connection, answer.share)

    def written(self, offset: int, size: int) -> None:
        """Note that `size` bytes from `offset` were written in place: engines that keep decoded
        code drop it, wherever this memory is attached."""
        for session in tuple(self._sessions):
            session.memory.written_in(self, offset, size)

    def attached_to(self, session: Session) -> None:
        """A session attached it: what is written here concerns that session."""
        self._sessions[session] = None

    def forget(self, session: Session) -> None:
        """A session ended."""
        self._sessions.pop(session, None)

    def close(self) -> None:
        """Unmap it here and in every guest, and free it. Closing again does nothing.

        `held` then tells whether somebody, this process included, still holds the memory: it stays
        charged until that ends. Core being gone is no error: it took the memory along.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            # The mapping ends with the last view of it: this one, unless others were kept.
            self._view = None
        for session in tuple(self._sessions):
            session.memory.forget(self)
        self._connection.forget(self)
        try:
            answer = self._connection.rpc.call(
                self._connection.dataspaces.FreeDataspace, FreeDataspaceRequest(name=self.name)
            )
        except CoreUnavailable:
            return
        except Refused as refusal:
            if refusal.reason != "NOT_FOUND":
                raise
            return
        self.held = answer.held

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _mapped(self) -> memoryview:
        if self._closed:
            raise Closed(self.name)
        fd = self._connection.fd_channel.collect(self.name)
        try:
            length = os.fstat(fd).st_size
            if length < self.size:  # touching what lies beyond would be SIGBUS
                raise BadFd(self.name, f"it has {length} bytes instead of {self.size}")
            read_only = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
            access = mmap.ACCESS_READ if read_only else mmap.ACCESS_WRITE
            return memoryview(mmap.mmap(fd, self.size, access=access))
        finally:
            os.close(fd)

    def _mappable(self) -> bool:
        """Whether it can be mapped here; a part of what somebody shares cannot."""
        if not self._through_core:
            try:
                _ = self.view
            except Refused as refusal:
                if refusal.reason != "INVALID_DATASPACE":
                    raise
                self._through_core = True
        return not self._through_core

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"{size} bytes at offset {offset} of {self.size} in {self.name}")


def _transfers(offset: int, size: int) -> Iterator[tuple[int, int]]:
    """Offset and bytes of each call that moves a part of a range."""
    for at in range(offset, offset + size, TRANSFER_BYTES):
        yield at, min(TRANSFER_BYTES, offset + size - at)
