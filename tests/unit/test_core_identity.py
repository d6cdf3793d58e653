"""Who is at the other end of a socket, while fds run out."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from core_service.identity import NOBODY, distinction, peer


@contextmanager
def no_fd_left() -> Iterator[None]:
    """Of this process, in the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_process_is_known_again_or_not_let_in() -> None:
    here, there = socket.socketpair()
    with here, there:
        identity, pidfd = peer(here)
        assert pidfd is not None
        os.close(pidfd)
        assert (identity.pid, identity.started) == (os.getpid(), distinction(os.getpid()))
        with no_fd_left(), pytest.raises(OSError, match="Too many open files") as refused:
            peer(here)
        assert refused.value.errno == errno.EMFILE


def test_what_no_process_is_known_by() -> None:
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    assert distinction(child) == NOBODY
