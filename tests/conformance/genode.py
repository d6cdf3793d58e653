"""What the tests of Genode's bugs share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vmm_client import Connection, Ram
from vmm_client.errors import Refused

COUNT_AND_HALT = "again: inc dword ptr [0x4000]; hlt; jmp again".replace("; ", "\n")
SPIN = "again: inc dword ptr [0x4000]\njmp again"


def refused(call: Callable[[], object]) -> Refused:
    """What a call is refused with."""
    with pytest.raises(Refused) as caught:
        call()
    return caught.value


def attachments(client: Connection, ram: Ram) -> int:
    """How often the memory is attached now, as core's audit says."""
    (record,) = (record for record in client.records() if record.name == ram.name)
    return len(record.attachments)
