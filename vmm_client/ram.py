"""Memory that this client created in core, mapped here when it is first touched."""

from __future__ import annotations

import mmap
import os
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vmsession.v1.dataspace_pb2 import Dataspace, FreeDataspaceRequest

from vmm_client.errors import BadFd, Closed, CoreUnavailable, Refused

if TYPE_CHECKING:
    from vmm_client.connection import Connection
    from vmm_client.session import Session


class Ram:
    """A RAM dataspace of `size` bytes, whole pages. Owns its mapping, and the memory in core, until
    `close`; a context manager. Any thread."""

    def __init__(self, connection: Connection, dataspace: Dataspace) -> None:
        self.name = dataspace.name
        self.size = dataspace.size
        self.held = False
        self._connection = connection
        self._lock = threading.Lock()
        self._view: memoryview | None = None
        self._sessions: dict[Session, None] = {}
        self._closed = False

    @property
    def view(self) -> memoryview:
        """All of it, to be read and written in place; mapped at the first use.

        What is written like this is unknown to the engines: tell them with `written`. Views kept
        beyond `close` keep the memory, and its charge, with them.

        Raises Refused, CoreUnavailable, BadFd, Closed, OSError (ENOMEM).
        """
        if self._view is None:
            with self._lock:
                self._view = self._view or self._mapped()
        return self._view

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`. Raises ValueError beyond the end, and see `view`."""
        self._check(offset, size)
        return self.view[offset : offset + size].tobytes()

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` at `offset`, for the guests to see. Raises as `read` does."""
        size = memoryview(data).nbytes
        self._check(offset, size)
        self.view[offset : offset + size] = memoryview(data).cast("B")
        self.written(offset, size)

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
            return memoryview(mmap.mmap(fd, self.size))
        finally:
            os.close(fd)

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"{size} bytes at offset {offset} of {self.size} in {self.name}")
