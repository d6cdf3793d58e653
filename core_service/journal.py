"""The journal's native protocol: one datagram for each entry, with fields that can be searched for
(systemd.journal-fields(7), https://systemd.io/JOURNAL_NATIVE_PROTOCOL).

Nothing depends on it: an entry that the journal does not take at once is dropped, and counted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import struct
from collections.abc import Mapping
from typing import Final

SOCKET: Final = "/run/systemd/journal/socket"
STREAM: Final = "JOURNAL_STREAM"
FIELD: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
TOO_LARGE: Final = {errno.EMSGSIZE, errno.ENOBUFS}
ENTRY_LIMIT: Final = 1 << 20
"""Bytes of one field at most: a traceback is a thousandth of it."""
SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def is_stderr(environment: Mapping[str, str], fd: int = 2) -> bool:
    """Whether what goes to stderr comes to the journal: $JOURNAL_STREAM names its device and inode,
    decimal, with a colon (systemd.exec(5)); it is inherited where stderr was redirected, too."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return environment.get(STREAM) == f"{status.st_dev}:{status.st_ino}"


def serialized(fields: Mapping[str, str]) -> bytes:
    """An entry. A value with line breaks goes by its length, so that none can begin another field.

    Raises ValueError for the name of a field that the journal does not take from programs.
    """
    parts = []
    for name, value in fields.items():
        if not FIELD.fullmatch(name):
            raise ValueError(f"{name!r} cannot be a field of the journal's")
        raw = value.encode("utf-8", "backslashreplace")[:ENTRY_LIMIT]
        if b"\n" in raw:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(raw)) + raw + b"\n")
        else:
            parts.append(name.encode() + b"=" + raw + b"\n")
    return b"".join(parts)


class Journal:
    """Owns a socket to the journal."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Entries that the journal did not take since it last took one."""
        return self._dropped

    def send(self, fields: Mapping[str, str]) -> None:
        """Write an entry. Never blocks. Raises ValueError as `serialized`."""
        if self._dropped:
            fields = {**fields, "VMSESSION_DROPPED": str(self._dropped)}
        entry = serialized(fields)
        try:
            self._send(entry)
        except OSError:
            self._dropped += 1
        else:
            self._dropped = 0

    def close(self) -> None:
        """Send no more."""
        self._socket.close()

    def _send(self, entry: bytes) -> None:
        try:
            self._socket.sendto(entry, self._path)
        except OSError as error:
            if error.errno not in TOO_LARGE:
                raise
            self._send_memory(entry)

    def _send_memory(self, entry: bytes) -> None:
        """What is too large for a datagram, as sealed memory."""
        fd = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            written = 0
            while written < len(entry):
                written += os.write(fd, entry[written:])
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))
            self._socket.sendmsg([], [rights], 0, self._path)
        finally:
            os.close(fd)
