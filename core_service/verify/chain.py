"""The check of the log's hash chain, beside core: hashing a million events takes a minute of a core, and
a thread of core's own would have the event loop share that core with it.

Run as a program it is that process: `python -m core_service.verify.chain DIRECTORY AFTER REVISION HASH`
prints what it found as JSON.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from core_service.audit import AuditError, Checked, Discrepancy, Query, verify_chain
from core_service.audit.schema import Head

if TYPE_CHECKING:
    from collections.abc import Sequence

AT_ONCE: Final = 2000
"""Events that a thread checks in less time than a process takes to start."""
PYTHON: Final = (sys.executable, "-P", "-m", "core_service.verify.chain")
UNREADABLE: Final = 3


async def check_chain(directory: Path, after: int, head: Head) -> Checked:
    """Check the events from `after` to `head`. Raises AuditError when the log cannot be read."""
    if head.revision - after <= AT_ONCE:
        return await asyncio.to_thread(checked, directory, after, head)
    process = _begin(directory, after, head)
    reading = asyncio.ensure_future(asyncio.to_thread(process.communicate))
    try:
        told, _ = await asyncio.shield(reading)
    except asyncio.CancelledError:  # the caller went away
        process.kill()
        await reading
        raise
    if process.returncode == UNREADABLE:
        raise AuditError(directory, json.loads(told))
    if process.returncode:
        raise AuditError(directory, f"its check ended with status {process.returncode}")
    return _decoded(told)


def _begin(directory: Path, after: int, head: Head) -> subprocess.Popen[bytes]:
    """By vfork, as Popen does it: the handlers that gRPC has for a fork crash the child of one."""
    arguments = (str(directory), str(after), str(head.revision), head.hash.hex())
    return subprocess.Popen([*PYTHON, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)


def checked(directory: Path, after: int, head: Head) -> Checked:
    """Check the log, again if retention removed a file meanwhile; all that is left of it where what
    follows `after` was removed."""
    log = Query(directory)
    while True:
        oldest = log.oldest_revision()
        found = verify_chain(directory, after if after + 1 >= oldest else 0, head)
        if not found.discrepancies or log.oldest_revision() == oldest:
            return found


def _encoded(found: Checked) -> str:
    head = (found.head.revision, found.head.hash.hex())
    return json.dumps([found.events, head, found.discrepancies])


def _decoded(told: bytes) -> Checked:
    events, (revision, digest), discrepancies = json.loads(told)
    head = Head(revision, bytes.fromhex(digest))
    return Checked(events, head, [Discrepancy(*found) for found in discrepancies])


def main(arguments: Sequence[str]) -> int:
    """Check what the command line names."""
    directory, after, revision, digest = arguments
    try:
        found = checked(Path(directory), int(after), Head(int(revision), bytes.fromhex(digest)))
    except AuditError as error:
        print(json.dumps(error.why))
        return UNREADABLE
    print(_encoded(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
