"""How a machine's end becomes an exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from dataspace.vcpu_page import Reason
from vmm_client.boards.pc import Ending
from vmm_client.machine import GuestFailed

LEFT: Final = 130  # as after Ctrl-C
SHUTDOWN: Final = 4
STUCK: Final = 5
STATUS: Final = {Ending.POWER_OFF: 0, Ending.HALTED: 0, Ending.RESET: 3, Ending.LEFT: LEFT}


def status_of(run: Callable[[], Ending]) -> int:
    """Run a machine; a guest that fails is a status of its own, and a line on stderr."""
    try:
        return STATUS[run()]
    except GuestFailed as failure:
        hint = f"\n     {failure.hint}" if failure.hint else ""
        print(f"vmm: {failure}{hint}", file=sys.stderr)
        return SHUTDOWN if failure.reason is Reason.SHUTDOWN else STUCK
