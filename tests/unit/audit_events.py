"""Events for the tests of the audit log."""

from __future__ import annotations

from itertools import count

from dataspace.record import Detail, Event, EventKind

BOOT = "6b0f4a8e-0c3e-4a57-9e21-5f2a54c1d7aa"
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
ALICE = "1000:1000:77"
BOB = "1001:1001:88"


def created(holder: str = ALICE, size: int = 4096, kind: str = "ram") -> Detail:
    """The detail of a dataspace's first event."""
    return {"kind": kind, "size": size, "holder": holder}


class Script:
    """Makes events with the next revision, a second after the one before on both clocks."""

    def __init__(self, after: int = 0, boot_id: str = BOOT) -> None:
        self._revisions = count(after + 1)
        self._boot_id = boot_id
        self.clock_ahead = 0  # seconds: the wall clock is set

    def __call__(
        self,
        kind: EventKind,
        subject: str,
        detail: Detail | None = None,
        *,
        actor: str = "",
        cause: str = "",
    ) -> Event:
        revision = next(self._revisions)
        return Event(
            revision=revision,
            monotonic_ns=revision * SECOND,
            wall_ns=START + (revision + self.clock_ahead) * SECOND,
            kind=kind,
            subject=subject,
            actor=actor,
            cause=cause,
            detail=detail or {},
            label="test",
            boot_id=self._boot_id,
        )
