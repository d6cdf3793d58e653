"""A process that writes the audit log until it is killed, and tells what is recorded.

Usage: python -m tests.unit.audit_writer DIRECTORY. One line `REVISION HASH` per group that is on disk.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from core_service.audit import AuditLog
from dataspace.record import EventKind
from tests.unit.audit_events import Script, created


async def write(directory: Path) -> None:
    """Create and free without an end."""
    log = AuditLog.open(directory, file_events=25)
    script = Script(log.last_revision)
    for name, kind in log.alive():
        log.append(script(EventKind.LOST, name, {"kind": kind}, cause="lost at crash"))
    while True:
        for _ in range(3):
            name = f"dataspaces/{log.last_revision}"
            log.append(script(EventKind.CREATED, name, created()))
        log.append(script(EventKind.FREED, name))
        revision = log.last_revision
        await log.recorded(revision)
        print(revision, log.head.hash.hex(), flush=True)


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1])))
