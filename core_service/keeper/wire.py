"""Packets between core and its keeper: one JSON object each, on a SOCK_SEQPACKET socket, with fds.

Core sends `put` (key, value, fds: takes the place of what the key held), `drop` (key), `keep` (seconds
to wait for the next core) and `end`. The keeper sends every record as a `put` to a core that connects,
and `ready` after the last; then nothing more.
"""

from __future__ import annotations

import json
import socket
import struct
from array import array
from typing import Any, Final

PACKET_LIMIT: Final = 64 << 10
FDS_LIMIT: Final = 4  # of one record
FD_BYTES: Final = 4

Message = dict[str, Any]


class WireError(Exception):
    """A packet that nobody of ours sends."""


def packed(message: Message) -> bytes:
    """A message as it is sent. Raises WireError for one that is too long."""
    packet = json.dumps(message, separators=(",", ":")).encode()
    if len(packet) > PACKET_LIMIT:
        raise WireError(f"a message of {len(packet)} bytes, of {PACKET_LIMIT} at most")
    return packet


def peer(connection: socket.socket) -> tuple[int, int]:
    """The process and the user at the other end (SO_PEERCRED, unix(7))."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", raw)
    return pid, uid


def receive(connection: socket.socket) -> tuple[Message, list[int]] | None:
    """The next message with its fds, which are the caller's and close-on-exec; None at the end.

    Raises WireError, and what a socket raises.
    """
    packet, ancillary, flags, _ = connection.recvmsg(
        PACKET_LIMIT, socket.CMSG_SPACE(FDS_LIMIT * FD_BYTES), socket.MSG_CMSG_CLOEXEC
    )
    fds = array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) - len(payload) % FD_BYTES])
    if not packet:
        return None
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise WireError("a packet that is too long, or fds that were lost")
    try:
        message = json.loads(packet)
    except ValueError as error:
        raise WireError("a packet that is no JSON") from error
    if not isinstance(message, dict):
        raise WireError("a packet that is no object")
    return message, fds.tolist()
