"""The fd channel: file descriptors collected from core over a SOCK_SEQPACKET socket.

`OpenFdChannel` in `proto/vmsession/v1/core.proto` defines it. The open channel is the client's lease:
core ends the client's sessions when it closes.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from array import array

from vmm_client.errors import BadFd, CoreUnavailable, Refused

ANSWER_SECONDS = 10.0
ASK_AGAIN_SECONDS = 2.0  # of a core that was started anew: what the one before read is lost
PACKET_BYTES = 4096
FD_BYTES = 4
FDS_PER_PACKET = 4  # one is right; room for more, so that none is lost unseen and left open


class FdChannel:
    """Owns the socket until `close`."""

    def __init__(self, path: str, ticket: str) -> None:
        """Redeem a ticket. Raises CoreUnavailable, or Refused if it is not valid (any more)."""
        self._path = path
        self._lock = threading.Lock()
        self._number = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(ANSWER_SECONDS)
        try:
            self._socket.connect(path)
            self._close_all(self._exchange(ticket))
        except OSError as error:
            self._socket.close()
            raise self._lost(error) from error
        except Refused:
            self._socket.close()
            raise

    def collect(self, what: str) -> int:
        """The fd of `dataspaces/41c`, `dataspaces/41c read-only` or `sessions/7k2m/vcpus/0`.

        The caller owns the fd, which is close-on-exec. Raises Refused, CoreUnavailable, BadFd.
        """
        # Core sends the next fd only when the last was received, so one request at a time.
        with self._lock:
            try:
                fds = self._ask(what)
            except OSError as error:
                self._socket.close()
                raise self._lost(error) from error
        if len(fds) != 1:
            self._close_all(fds)
            raise BadFd(what, f"{len(fds)} came instead of one")
        return fds[0]

    def hung_up(self) -> bool:
        """Whether core closed its end: the lease is over. Does not block, any thread."""
        fd = self._socket.fileno()
        if fd < 0:
            return True
        poll = select.poll()
        poll.register(fd, 0)  # POLLHUP is always told
        return bool(poll.poll(0))

    def close(self) -> None:
        """Give up the lease; closing again does nothing."""
        self._socket.close()

    def _ask(self, what: str) -> list[int]:
        """Ask, more than once if need be; an answer tells by its number what it is for."""
        end = time.monotonic() + ANSWER_SECONDS
        self._socket.settimeout(ASK_AGAIN_SECONDS)
        while True:
            self._number += 1
            try:
                return self._exchange(what, str(self._number))
            except TimeoutError:
                if time.monotonic() > end:
                    raise

    def _exchange(self, request: str, number: str = "") -> list[int]:
        self._socket.send(f"{number} {request}".lstrip().encode())
        while True:
            answer, fds, flags = self._receive()
            verdict, _, rest = answer.decode(errors="replace").partition(" ")
            answers, _, told = rest.partition(" ")
            if not number or not answers.isdecimal():
                break
            if answers == number:
                rest = told
                break
            self._close_all(fds)  # it comes late: another was asked for again
        if verdict == "ok" and not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            return fds
        self._close_all(fds)
        if verdict == "error":
            reason, _, text = rest.partition(" ")
            raise Refused(reason, text)
        raise ConnectionResetError("core closed it" if not answer else f"answered {answer!r}")

    def _receive(self) -> tuple[bytes, list[int], int]:
        # Not socket.recv_fds: Python 3.11 has it drop the flags, so that fds would be inherited.
        answer, ancillary, flags, _ = self._socket.recvmsg(
            PACKET_BYTES, socket.CMSG_SPACE(FDS_PER_PACKET * FD_BYTES), socket.MSG_CMSG_CLOEXEC
        )
        fds = array("i")
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(payload[: len(payload) - len(payload) % FD_BYTES])
        return answer, fds.tolist(), flags

    def _lost(self, error: OSError) -> CoreUnavailable:
        if isinstance(error, TimeoutError):
            why = f"the fd channel did not answer within {ANSWER_SECONDS:.0f} seconds"
        else:
            why = f"the fd channel failed: {error.strerror or error}"
        return CoreUnavailable(self._path, why, "connect again; core's log tells more")

    @staticmethod
    def _close_all(fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
