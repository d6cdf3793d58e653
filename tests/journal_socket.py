"""The journal's end of its native protocol, for tests."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from pathlib import Path

from core_service.journal import SEALS


def parsed(entry: bytes) -> dict[str, str]:
    """The fields of an entry, as journald reads them."""
    fields = {}
    while entry:
        line, _, rest = entry.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack_from("<Q", rest)
            value, rest = rest[8 : 8 + size], rest[8 + size :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        assert name.decode() not in fields
        fields[name.decode()] = value.decode()
        entry = rest
    return fields


class JournalSocket:
    """Owns a socket at `path` and what arrives there."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        path.chmod(0o666)
        self._socket.settimeout(10)

    def next(self) -> dict[str, str]:
        """The next entry; waits for it."""
        data, fds, _, _ = socket.recv_fds(self._socket, 1 << 20, 1)
        if not fds:
            return parsed(data)
        (fd,) = fds
        try:
            assert data == b""
            assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == SEALS
            return parsed(os.pread(fd, os.fstat(fd).st_size, 0))
        finally:
            os.close(fd)

    def until(self, event: str) -> dict[str, str]:
        """The next entry of an event; those before are forgotten."""
        while (entry := self.next()).get("VMSESSION_EVENT") != event:
            pass
        return entry

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()
