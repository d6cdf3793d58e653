"""The ledger: the record of every dataspace that ever lived, and the one source of events.

Every change is one event, which goes to one sink before it takes effect: if the sink raises,
nothing has changed. So whoever keeps the events (a log on disk) knows at least what the ledger
knows. The ledger records; it maps, allocates and charges nothing.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator
from operator import attrgetter
from typing import get_args

from dataspace.attachments import Attachment
from dataspace.errors import DuplicateDataspace, InvalidDataspace, UnknownDataspace
from dataspace.life import Life
from dataspace.ranges import check_dataspace_size, check_range, part_size
from dataspace.record import (
    DataspaceKind,
    Detail,
    Event,
    EventKind,
    Record,
    Stamp,
    State,
    Totals,
    now,
)

__all__ = [
    "DataspaceKind",
    "Detail",
    "Event",
    "EventKind",
    "Ledger",
    "Record",
    "Stamp",
    "State",
    "Totals",
]

HISTORY = 10_000
_ADDRESS_LIMIT = 1 << 64


class Ledger:
    """Events in, records out; every method that takes `actor` and `cause` emits one event.

    `actor` is who asked for the change, empty for core itself; `label` is that of the session
    concerned, which the page of a vCPU keeps for its life. These methods raise
    UnknownDataspace for a name without record, InvalidTransition where the state does not admit
    the event, and what the sink raises. A change that is refused emits nothing.
    """

    def __init__(
        self,
        sink: Callable[[Event], None] | None = None,
        clock: Callable[[], Stamp] = now,
        history: int = HISTORY,
        *,
        revision: int = 0,
        boot_id: str = "",
    ) -> None:
        """Start empty, after the event of `revision`; the latest `history` freed dataspaces stay on
        record. `boot_id` tells which boot of the kernel the monotonic clock counts from."""
        if history < 0:
            raise ValueError(f"history of {history} records")
        self._sink = sink
        self._clock = clock
        self._history = history
        self._revision = revision
        self._boot_id = boot_id
        self._totals = Totals()
        self._held_by: dict[str, Totals] = {}
        self._by_kind: dict[str, Totals] = {}
        self._living: dict[str, Life] = {}
        self._freed: OrderedDict[str, Life] = OrderedDict()
        self._sharers: dict[str, Counter[str]] = {}  # holders of shares not freed, by origin

    @property
    def revision(self) -> int:
        """The revision of the latest event, or what the ledger started after."""
        return self._revision

    def create(  # noqa: PLR0913 - the fields of the event
        self,
        name: str,
        kind: DataspaceKind,
        size: int,
        holder: str,
        *,
        origin: str = "",
        actor: str = "",
        cause: str = "",
        label: str = "",
    ) -> None:
        """Record a new dataspace of `size` bytes, charged to `holder`; a share is one of `origin`.

        Names are never to be reused; the ledger refuses those it has on record. But the page of a vCPU
        has the vCPU's name, and what came of an earlier attempt to make that is freed. Raises
        DuplicateDataspace, InvalidDataspace (no name, unknown kind, size), UnknownDataspace (origin).
        """
        if not name or kind not in get_args(DataspaceKind):
            raise InvalidDataspace("no name, or no such kind", name=name, kind=kind)
        check_dataspace_size(size)
        if name in self._living or (name in self._freed and kind != "vcpu_page"):
            raise DuplicateDataspace(name)
        detail: dict[str, int | str | bool] = {"kind": kind, "size": size, "holder": holder}
        if origin:
            self._admitted(origin, EventKind.SHARED)
            detail["origin"] = origin
        event = self._commit(EventKind.CREATED, name, actor, cause, detail, label)
        self._freed.pop(name, None)
        self._living[name] = Life(
            name, kind, size, holder, event.stamp, event.revision, origin, label
        )
        if origin:
            self._sharers.setdefault(origin, Counter())[holder] += 1
        self._count(self._living[name], None, State.ALIVE)

    def resume(self, life: Life) -> None:
        """Go on with a dataspace of an earlier ledger: it is on record already, so there is no event.

        Raises DuplicateDataspace.
        """
        if life.name in self._living or life.name in self._freed:
            raise DuplicateDataspace(life.name)
        self._living[life.name] = life
        if life.origin:
            self._sharers.setdefault(life.origin, Counter())[life.holder] += 1
        self._count(life, None, life.state)

    def resume_attachment(self, session: str, attachment: Attachment) -> None:
        """Go on with an attachment of a dataspace that was resumed."""
        self._life(attachment.dataspace).resume_attachment(session, attachment)

    def attach(  # noqa: PLR0913, PLR0917 - the fields of the event
        self,
        name: str,
        session: str,
        gpa: int,
        size: int,
        offset: int,
        writable: bool,
        executable: bool = True,
        *,
        actor: str = "",
        cause: str = "",
        label: str = "",
    ) -> None:
        """Record a mapping of `size` bytes from `offset` at `gpa` in a session.

        Raises InvalidRange, InvalidDataspace (not a part of it), NotWritable (a ROM), and
        RegionConflict where the session has this dataspace there already.
        """
        life = self._admitted(name, EventKind.ATTACHED)
        check_range(gpa, size, _ADDRESS_LIMIT)
        part_size(life.size, offset, size)
        life.check_writable(writable)
        attachment = Attachment(gpa, size, name, offset, writable, executable)
        life.check_attach(session, attachment)
        detail: Detail = {
            "session": session,
            "gpa": gpa,
            "size": size,
            "offset": offset,
            "writable": writable,
            "executable": executable,
        }
        self._commit(EventKind.ATTACHED, name, actor, cause, detail, label)
        life.attach(session, attachment)

    def detach(  # noqa: PLR0913 - the fields of the event
        self,
        name: str,
        session: str,
        gpa: int,
        size: int,
        *,
        actor: str = "",
        cause: str = "",
        label: str = "",
    ) -> None:
        """Record that `size` bytes at `gpa`, one mapping or a part of it, are unmapped.

        Raises InvalidRange unless all of the range is a mapping of this dataspace.
        """
        life = self._admitted(name, EventKind.DETACHED)
        check_range(gpa, size, _ADDRESS_LIMIT)
        life.check_detach(session, gpa, size)
        detail: Detail = {"session": session, "gpa": gpa, "size": size}
        self._commit(EventKind.DETACHED, name, actor, cause, detail, label)
        life.detach(session, gpa, size)

    def hand_out(self, name: str, writable: bool, *, actor: str = "", cause: str = "") -> None:
        """Record that a file descriptor of it leaves core, to `actor`.

        Raises NotWritable for a writable one of a ROM.
        """
        life = self._admitted(name, EventKind.HANDED_OUT)
        life.check_writable(writable)
        self._commit(EventKind.HANDED_OUT, name, actor, cause, {"writable": writable}, life.label)
        life.hand_out()

    def seal(self, name: str, *, actor: str = "", cause: str = "") -> None:
        """Record that its content is frozen: it can only be read from now on."""
        life = self._admitted(name, EventKind.SEALED)
        self._commit(EventKind.SEALED, name, actor, cause, {}, life.label)
        life.seal()

    def note(  # noqa: PLR0913 - the fields of the event
        self,
        kind: EventKind,
        subject: str,
        *,
        actor: str = "",
        cause: str = "",
        detail: Detail | None = None,
        label: str = "",
    ) -> None:
        """Record a change of something else than a dataspace of this ledger."""
        self._commit(kind, subject, actor, cause, detail or {}, label)

    def free(self, name: str, cause: str, *, actor: str = "") -> None:
        """Record that an attached-nowhere dataspace is gone, and nobody holds its memory."""
        self._move(EventKind.FREED, name, actor, cause)

    def hold(self, name: str, cause: str = "", *, actor: str = "") -> None:
        """Record that its owner freed it, while somebody still holds the memory."""
        self._move(EventKind.HELD, name, actor, cause)

    def release(self, name: str, cause: str = "", *, actor: str = "") -> None:
        """Record that the last holder of freed memory let go."""
        self._move(EventKind.RELEASED, name, actor, cause)

    def alive(self) -> list[Record]:
        """Return the records of what is in state ALIVE, in the order of creation."""
        return [self._told(life) for life in self._living.values() if life.state is State.ALIVE]

    def held(self) -> list[Record]:
        """Return the records of what is in state HELD, in the order of creation."""
        return [self._told(life) for life in self._living.values() if life.state is State.HELD]

    def all(self) -> list[Record]:
        """Return all records: the freed ones by the time they were freed, then the others."""
        return [
            self._told(life) for lives in (self._freed, self._living) for life in lives.values()
        ]

    def created_after(
        self,
        revision: int,
        *,
        shown: Callable[[str], bool] = lambda _holder: True,
        kinds: Collection[str] = get_args(DataspaceKind),
        session: str = "",
        gone: bool = True,
    ) -> Iterator[tuple[int, Record]]:
        """Iterate over the records of what was created after a revision, oldest first, each with the
        revision of its creation; only those whose holder is `shown`, of some kinds, attached
        to a session or the page of a vCPU of it, or without those that are gone, if so asked. A record
        is made as it is asked for: who takes a few pays for a few.
        """
        lives = [
            life
            for among in ((self._freed, self._living) if gone else (self._living,))
            for life in among.values()
            if life.revision > revision
            and life.kind in kinds
            and life.is_of(session)
            and shown(life.holder)
        ]
        lives.sort(key=attrgetter("revision"))
        return ((life.revision, self._told(life)) for life in lives)

    def record(self, name: str) -> Record:
        """Return the record of one dataspace; raises UnknownDataspace."""
        return self._told(self._life(name))

    def totals(self) -> Totals:
        """Return the sums over all that ever lived."""
        return self._totals

    def totals_by_holder(self) -> dict[str, Totals]:
        """Return the sums of each holder who has something, over what he held since he last had
        nothing."""
        return dict(self._held_by)

    def peaks_by_kind(self) -> dict[str, int]:
        """Return the most bytes that lived or were held at once, of each kind that there ever was."""
        return {kind: totals.peak_bytes for kind, totals in self._by_kind.items()}

    def _count(self, life: Life, left: State | None, entered: State) -> None:
        self._totals = self._totals.moved(life.size, left, entered)
        of_kind = self._by_kind.get(life.kind, Totals())
        self._by_kind[life.kind] = of_kind.moved(life.size, left, entered)
        own = self._held_by.pop(life.holder, Totals()).moved(life.size, left, entered)
        if own.live or own.held:
            self._held_by[life.holder] = own

    def _told(self, life: Life) -> Record:
        origin = life.origin or life.name
        sharers = self._sharers.get(origin, ())
        owner = self._living.get(origin)
        return life.record(len(sharers) + (owner is not None and owner.holder not in sharers))

    def _forget_share(self, life: Life) -> None:
        if life.origin:
            sharers = self._sharers[life.origin]
            sharers[life.holder] -= 1
            if not sharers[life.holder]:
                del sharers[life.holder]
            if not sharers:
                del self._sharers[life.origin]

    def _life(self, name: str) -> Life:
        life = self._living.get(name) or self._freed.get(name)
        if life is None:
            raise UnknownDataspace(name)
        return life

    def _admitted(self, name: str, kind: EventKind) -> Life:
        life = self._life(name)
        life.after(kind)
        return life

    def _move(self, kind: EventKind, name: str, actor: str, cause: str) -> None:
        life = self._life(name)
        left, entered = life.state, life.after(kind)
        event = self._commit(kind, name, actor, cause, {}, life.label)
        life.enter(entered, event.stamp, cause)
        self._count(life, left, entered)
        if entered is State.FREED:
            self._freed[name] = self._living.pop(name)
            self._forget_share(life)
            while len(self._freed) > self._history:
                self._freed.popitem(last=False)

    def _commit(  # noqa: PLR0913, PLR0917 - the fields of the event
        self, kind: EventKind, subject: str, actor: str, cause: str, detail: Detail, label: str
    ) -> Event:
        stamp = self._clock()
        event = Event(
            self._revision + 1,
            stamp.monotonic_ns,
            stamp.wall_ns,
            kind,
            subject,
            actor,
            cause,
            detail,
            label,
            self._boot_id,
        )
        if self._sink is not None:
            self._sink(event)
        self._revision = event.revision
        return event
