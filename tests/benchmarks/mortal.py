"""A VMM process to be killed, with much memory in many attachments. It says `ready`, and waits."""

from __future__ import annotations

import sys
from typing import Final

from vmsession.v1.vm_session_pb2 import UpgradeQuotaRequest

from vmm_client import connect

ATTACHMENTS: Final = 1000
BYTES: Final = 8 << 30
PART: Final = 8 << 20
TOUCHED: Final = 64 << 20  # backed by memory


def main() -> None:
    """The process itself: `mortal SOCKET ENGINE`."""
    socket, engine = sys.argv[1:]
    with connect(socket) as core:
        session, ram = core.create_session(engine), core.create_ram(BYTES)
        request = UpgradeQuotaRequest(session=session.name, capabilities=ATTACHMENTS)
        core.rpc.call(core.vm_sessions.UpgradeQuota, request)
        for number in range(ATTACHMENTS):
            session.attach(ram, number * 2 * PART, number * PART, PART)
        ram.write(0, bytes(TOUCHED))
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
