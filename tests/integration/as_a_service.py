"""Starts a command as systemd does: with listening sockets from fd 3 on, in the place of this process.

    python -m tests.integration.as_a_service NAME:TYPE:PATH... -- COMMAND...

TYPE is `stream` or `seqpacket`, with `-deaf` for a socket that does not listen, or `file`.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

KINDS = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET}


def opened(kind: str, path: Path) -> int:
    """An fd of what stands for a socket."""
    if kind == "file":
        return os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    listening = socket.socket(socket.AF_UNIX, KINDS[kind.removesuffix("-deaf")])
    listening.bind(str(path))
    path.chmod(0o666)
    if not kind.endswith("-deaf"):
        listening.listen(64)
    return listening.detach()


def main() -> None:
    """Never returns."""
    split = sys.argv.index("--")
    command = sys.argv[split + 1 :]
    wanted = [each.split(":", 2) for each in sys.argv[1:split]]
    fds = [opened(kind, Path(path)) for _, kind, path in wanted]
    high = [os.dup2(fd, 100 + number) for number, fd in enumerate(fds)]
    for number, fd in enumerate(high):
        os.dup2(fd, 3 + number)
    for fd in {*fds, *high} - set(range(3, 3 + len(fds))):
        os.close(fd)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["LISTEN_FDS"] = str(len(fds))
    os.environ.setdefault("LISTEN_FDNAMES", ":".join(name for name, _, _ in wanted))
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
