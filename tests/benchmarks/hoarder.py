"""A VMM process that holds many small dataspaces: `hoarder SOCKET NUMBER`. It says `ready` and waits."""

from __future__ import annotations

import sys

from vmm_client import connect

PAGE = 4096


def main() -> None:
    """The process itself."""
    socket, number = sys.argv[1], int(sys.argv[2])
    with connect(socket) as core:
        for _ in range(number):
            core.create_ram(PAGE)
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
