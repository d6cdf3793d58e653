"""What the ledger writes and tells: events, and the records of dataspaces they add up to."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

from dataspace.attachments import Attachment

DataspaceKind = Literal["ram", "rom", "vcpu_page", "share"]
Detail = Mapping[str, int | str | bool]


class Stamp(NamedTuple):
    """One moment on two clocks, in nanoseconds: since boot (CLOCK_MONOTONIC), since the epoch."""

    monotonic_ns: int
    wall_ns: int


def now() -> Stamp:
    """Read both clocks."""
    return Stamp(time.monotonic_ns(), time.time_ns())


class EventKind(StrEnum):
    """What can happen to an object."""

    CREATED = "created"
    ATTACHED = "attached"
    DETACHED = "detached"
    HANDED_OUT = "handed_out"
    """A file descriptor of it left core."""
    FREED = "freed"
    """Freed by its owner, and nobody holds the memory."""
    HELD = "held"
    """Freed by its owner, but somebody still holds the memory, which stays charged."""
    RELEASED = "released"
    """The last holder of freed memory let go."""
    SEALED = "sealed"
    """Its content was frozen for good."""
    SHARED = "shared"
    """A part of it, or all, was offered to another client: the subject is the offer."""
    ACCEPTED = "accepted"
    """An offer was taken: `detail` names what it became."""
    REVOKED = "revoked"
    """An offer was taken back."""
    OPENED = "opened"
    """A client, session or vCPU begins."""
    CLOSED = "closed"
    """A client, session or vCPU ends."""
    UPGRADED = "upgraded"
    """A session's quota was raised."""
    LOST = "lost"
    """An object of a core that was killed; what `detail` names as `kind` is gone."""
    ADOPTED = "adopted"
    """A core that was started anew goes on with a session."""
    POLICY = "policy"
    """Core heeds another policy."""
    STARTED = "started"
    """Core begins to serve."""
    STOPPED = "stopped"
    """Core ends in good order."""


class State(StrEnum):
    """The states of a dataspace: ALIVE to FREED, or ALIVE to HELD to FREED."""

    ALIVE = "alive"
    HELD = "held"
    FREED = "freed"


@dataclass(frozen=True, slots=True)
class Event:
    """One change.

    `revision` counts events from 1 without a gap. `subject` is the object, `actor` who asked for
    the change (empty: core of its own accord), `cause` why. `label` is that of the session
    concerned, if any; `boot_id` tells which boot of the kernel the monotonic clock counts from.
    `detail` has the rest by kind:

    - created: kind, size, holder; origin for a share
    - attached: session, gpa, size, offset, writable, executable
    - detached: session, gpa, size
    - handed_out: writable
    - shared: dataspace, uid, pid, offset, size, writable
    - accepted: dataspace (the receiver's)
    - revoked: dataspace, uid
    - opened, started: kind, holder, and what is particular to that kind
    - upgraded: ram, capabilities
    - policy: kind, file, digest (SHA-256 of the file)
    - lost: kind
    """

    revision: int
    monotonic_ns: int
    wall_ns: int
    kind: EventKind
    subject: str
    actor: str
    cause: str
    detail: Detail
    label: str = ""
    boot_id: str = ""

    @property
    def stamp(self) -> Stamp:
        """When it happened."""
        return Stamp(self.monotonic_ns, self.wall_ns)


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one dataspace at one moment.

    `size` is in bytes; `holder` is who is charged for it. `cause` is why its owner freed it, empty
    while alive; `held` and `freed` are when the state was entered, if it was. `attachments` are
    the present ones as (session, attachment); `mappings` and `hand_outs` count all there ever
    were. `origin` is the dataspace that a share is of; `holders` counts who has the memory now, by
    owning it or by a share.
    """

    name: str
    kind: DataspaceKind
    size: int
    holder: str
    state: State
    created: Stamp
    held: Stamp | None
    freed: Stamp | None
    cause: str
    attachments: tuple[tuple[str, Attachment], ...]
    mappings: int
    hand_outs: int
    origin: str = ""
    holders: int = 1


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all dataspaces that ever lived, exact whatever the history dropped.

    `live` and `held` count dataspaces in those states, the bytes are theirs; `peak_bytes` is the
    most that live and held ones had together; `created` and `freed` count all there ever were.
    """

    live: int = 0
    live_bytes: int = 0
    held: int = 0
    held_bytes: int = 0
    peak_bytes: int = 0
    created: int = 0
    freed: int = 0

    def moved(self, size: int, left: State | None, entered: State) -> "Totals":
        """Return the totals after a dataspace of `size` went from one state (None: new) to one."""
        alive = (entered is State.ALIVE) - (left is State.ALIVE)
        held = (entered is State.HELD) - (left is State.HELD)
        live_bytes = self.live_bytes + alive * size
        held_bytes = self.held_bytes + held * size
        return Totals(
            live=self.live + alive,
            live_bytes=live_bytes,
            held=self.held + held,
            held_bytes=held_bytes,
            peak_bytes=max(self.peak_bytes, live_bytes + held_bytes),
            created=self.created + (left is None),
            freed=self.freed + (entered is State.FREED),
        )
