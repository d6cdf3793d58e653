"""The life of one dataspace: its state machine, and where it is attached at present."""

from dataspace.attachments import Attachment, Attachments
from dataspace.errors import InvalidRange, InvalidTransition, NotWritable, RegionConflict
from dataspace.record import DataspaceKind, EventKind, Record, Stamp, State

# What may happen in which state, and the state after it. All else is refused.
_TRANSITIONS = {
    (State.ALIVE, EventKind.ATTACHED): State.ALIVE,
    (State.ALIVE, EventKind.DETACHED): State.ALIVE,
    (State.ALIVE, EventKind.HANDED_OUT): State.ALIVE,
    (State.ALIVE, EventKind.SEALED): State.ALIVE,
    (State.ALIVE, EventKind.SHARED): State.ALIVE,
    (State.ALIVE, EventKind.FREED): State.FREED,
    (State.ALIVE, EventKind.HELD): State.HELD,
    (State.HELD, EventKind.RELEASED): State.FREED,
}


class Life:
    """One dataspace from its creation on.

    What is asked first (`after`, `check_...`) raises and changes nothing; what is done then
    cannot fail. In between the ledger writes the event.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the fields of the event that begins it
        self,
        name: str,
        kind: DataspaceKind,
        size: int,
        holder: str,
        created: Stamp,
        revision: int,
        origin: str = "",
        label: str = "",
    ) -> None:
        """Begin in state ALIVE, attached nowhere, with the event of that revision."""
        self.name = name
        self.revision = revision
        self.kind = kind
        self.size = size
        self.state = State.ALIVE
        self.holder = holder
        self.origin = origin
        self.label = label
        self._created = created
        self._held: Stamp | None = None
        self._freed: Stamp | None = None
        self._cause = ""
        self._sessions: dict[str, Attachments] = {}
        self._mappings = 0
        self._hand_outs = 0
        self._read_only = kind == "rom"
        self._told: Record | None = None

    def after(self, event: EventKind) -> State:
        """Return the state that `event` leads to; raises InvalidTransition where it cannot be."""
        state = _TRANSITIONS.get((self.state, event))
        if state is None:
            raise InvalidTransition(self.name, event, f"is {self.state}")
        if state is not State.ALIVE and self._sessions:
            raise InvalidTransition(self.name, event, "is attached")
        return state

    def check_writable(self, writable: bool) -> None:
        """Raise NotWritable for write access to a ROM, or to what is sealed."""
        if writable and self._read_only:
            raise NotWritable(self.name)

    def check_attach(self, session: str, wanted: Attachment) -> None:
        """Raise RegionConflict where this dataspace is attached in the session already."""
        own = self._sessions.get(session, Attachments())
        for taken in own.overlapping(wanted.gpa, wanted.size):
            raise RegionConflict(wanted.gpa, wanted.size, taken.gpa, taken.size)

    def check_detach(self, session: str, gpa: int, size: int) -> None:
        """Raise InvalidRange unless all of the range is this dataspace, in the session."""
        own = self._sessions.get(session, Attachments())
        if sum(piece.size for piece in own.pieces(gpa, size)) != size:
            raise InvalidRange(
                "not all attached", gpa=gpa, size=size, session=session, dataspace=self.name
            )

    def is_of(self, session: str) -> bool:
        """Whether it is attached to a session or the page of a vCPU of it; empty for any."""
        return not session or session in self._sessions or self.name.startswith(f"{session}/")

    def attach(self, session: str, attachment: Attachment) -> None:
        """Note a new mapping."""
        self._told = None
        self._sessions.setdefault(session, Attachments()).insert(attachment)
        self._mappings += 1

    def resume(self, mappings: int, hand_outs: int, held: Stamp | None, cause: str) -> None:
        """Go on with one of an earlier ledger; `held` is when its owner freed it, if he did."""
        self._mappings = mappings
        self._hand_outs = hand_outs
        if held:
            self.enter(State.HELD, held, cause)

    def resume_attachment(self, session: str, attachment: Attachment) -> None:
        """Note a mapping that was counted before."""
        self.attach(session, attachment)
        self._mappings -= 1

    def detach(self, session: str, gpa: int, size: int) -> None:
        """Note that a mapping, or a part of it, is gone."""
        self._told = None
        own = self._sessions[session]
        own.cut(gpa, size)
        if not own:
            del self._sessions[session]

    def hand_out(self) -> None:
        """Note that somebody was given a file descriptor."""
        self._told = None
        self._hand_outs += 1

    def seal(self) -> None:
        """Note that it can only be read from now on."""
        self._read_only = True

    def enter(self, state: State, stamp: Stamp, cause: str) -> None:
        """Go to HELD or FREED; the cause that counts is why its owner freed it."""
        self._told = None
        if self.state is State.ALIVE:
            self._cause = cause
        if state is State.HELD:
            self._held = stamp
        else:
            self._freed = stamp
        self.state = state

    def record(self, holders: int) -> Record:
        """Return what is known now; how many hold the memory is for the ledger to say.

        What did not change since it was told last costs nothing.
        """
        if self._told is None or self._told.holders != holders:
            self._told = self._record(holders)
        return self._told

    def _record(self, holders: int) -> Record:
        return Record(
            name=self.name,
            kind=self.kind,
            size=self.size,
            holder=self.holder,
            state=self.state,
            created=self._created,
            held=self._held,
            freed=self._freed,
            cause=self._cause,
            attachments=tuple((s, a) for s, own in self._sessions.items() for a in own),
            mappings=self._mappings,
            hand_outs=self._hand_outs,
            origin=self.origin,
            holders=holders,
        )
