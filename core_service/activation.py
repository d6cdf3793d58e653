"""Sockets that the service manager listens on for core (sd_listen_fds(3)).

Clients that connect while no core runs then wait in the backlog, and core need not make sockets.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

FIRST: Final = 3
CORE: Final = "core"
FDS: Final = "fds"
KINDS: Final = {CORE: socket.SOCK_STREAM, FDS: socket.SOCK_SEQPACKET}


class ActivationError(Exception):
    """What the service manager passed is not what core can serve on; says what to change."""


def inherited(environment: MutableMapping[str, str]) -> dict[str, socket.socket]:
    """The sockets by name, owned by the caller; empty if none were passed to this process. They are
    taken out of the environment, and closed on exec. Raises ActivationError."""
    count = environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "")
    if environment.pop("LISTEN_PID", "") != str(os.getpid()) or not count:
        return {}
    fds = _named(count, names)
    sockets = {}
    for name, fd in fds.items():
        try:
            os.set_inheritable(fd, False)
            sockets[name] = socket.socket(fileno=fd)
        except OSError as error:
            raise ActivationError(
                f"fd {fd}, named {name}, is no socket: {error.strerror}"
            ) from error
    return sockets


def check(name: str, passed: socket.socket, path: Path) -> None:
    """Raises ActivationError unless it listens at `path`, with the type that this name has."""
    kind = KINDS[name]
    if passed.family != socket.AF_UNIX or passed.type != kind:
        raise ActivationError(f"socket {name} is {passed.type.name}: must be AF_UNIX {kind.name}")
    if not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ActivationError(f"socket {name} does not listen: it must, with Accept=no")
    at = passed.getsockname()
    if not isinstance(at, str) or Path(at).resolve() != path.resolve():
        raise ActivationError(
            f"socket {name} listens at {at!r}: must be {path}, or change --directory"
        )


def _named(count: str, names: str) -> dict[str, int]:
    listed = names.split(":") if names else []
    if not (count.isascii() and count.isdecimal()) or int(count) != len(listed):
        raise ActivationError(
            f"LISTEN_FDS is {count!r}, LISTEN_FDNAMES {names!r}: one name for each"
        )
    for name in listed:
        if name not in KINDS:
            known = " or ".join(KINDS)
            raise ActivationError(f"a socket is named {name!r}: set FileDescriptorName={known}")
    if len(set(listed)) < len(listed):
        raise ActivationError(f"two sockets have one name: {names!r}")
    return {name: fd for fd, name in enumerate(listed, FIRST)}
