"""The ledger: its state machine, its events, its records and totals."""

from collections.abc import Callable

import pytest

from dataspace.address_map import Attachment
from dataspace.errors import (
    DataspaceError,
    DuplicateDataspace,
    InvalidDataspace,
    InvalidRange,
    InvalidTransition,
    NotWritable,
    RegionConflict,
    UnknownDataspace,
)
from dataspace.ledger import Detail, Event, EventKind, Ledger, Record, Stamp, State, Totals

PAGE = 4096
NAME = "dataspaces/1"
VM = "sessions/7k2m"


class LogFullError(Exception):
    pass


class Log:
    """A sink; it refuses everything while `full`."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.full = False

    def __call__(self, event: Event) -> None:
        if self.full:
            raise LogFullError
        self.events.append(event)


class Clock:
    """The n-th reading is n on the monotonic clock, and 1000 + n on the wall."""

    def __init__(self) -> None:
        self.readings = 0

    def __call__(self) -> Stamp:
        self.readings += 1
        return stamp(self.readings)


def stamp(reading: int) -> Stamp:
    return Stamp(reading, 1000 + reading)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def ledger(log: Log) -> Ledger:
    return Ledger(log, Clock())


def test_life_of_a_dataspace_in_events_and_records(ledger: Ledger, log: Log) -> None:
    ledger.create(NAME, "ram", 4 * PAGE, "uid 1000", actor="client 5", cause="AllocRam")
    ledger.hand_out(NAME, True, actor="client 5")
    ledger.attach(NAME, VM, 8 * PAGE, 2 * PAGE, PAGE, True, False, actor="client 5")
    assert ledger.record(NAME) == Record(
        name=NAME,
        kind="ram",
        size=4 * PAGE,
        holder="uid 1000",
        state=State.ALIVE,
        created=stamp(1),
        held=None,
        freed=None,
        cause="",
        attachments=((VM, Attachment(8 * PAGE, 2 * PAGE, NAME, PAGE, True, False)),),
        mappings=1,
        hand_outs=1,
    )
    ledger.detach(NAME, VM, 8 * PAGE, 2 * PAGE, cause="close")
    ledger.hold(NAME, "lease ended")
    ledger.release(NAME, "probe")
    assert ledger.record(NAME) == Record(
        name=NAME,
        kind="ram",
        size=4 * PAGE,
        holder="uid 1000",
        state=State.FREED,
        created=stamp(1),
        held=stamp(5),
        freed=stamp(6),
        cause="lease ended",
        attachments=(),
        mappings=1,
        hand_outs=1,
        holders=0,
    )
    created: Detail = {"kind": "ram", "size": 4 * PAGE, "holder": "uid 1000"}
    detached: Detail = {"session": VM, "gpa": 8 * PAGE, "size": 2 * PAGE}
    attached: Detail = {**detached, "offset": PAGE, "writable": True, "executable": False}
    assert log.events == [
        Event(1, 1, 1001, EventKind.CREATED, NAME, "client 5", "AllocRam", created),
        Event(2, 2, 1002, EventKind.HANDED_OUT, NAME, "client 5", "", {"writable": True}),
        Event(3, 3, 1003, EventKind.ATTACHED, NAME, "client 5", "", attached),
        Event(4, 4, 1004, EventKind.DETACHED, NAME, "", "close", detached),
        Event(5, 5, 1005, EventKind.HELD, NAME, "", "lease ended", {}),
        Event(6, 6, 1006, EventKind.RELEASED, NAME, "", "probe", {}),
    ]
    assert ledger.revision == 6


def test_a_share_is_one_holder_more_until_it_is_gone(ledger: Ledger, log: Log) -> None:
    ledger.create(NAME, "ram", PAGE, "uid 1000")
    for name, holder in ("first", "uid 1001"), ("second", "uid 1001"), ("third", "uid 1000"):
        ledger.create(name, "share", PAGE, holder, origin=NAME)
    assert log.events[-1].detail["origin"] == NAME
    assert (ledger.record("first").origin, ledger.record(NAME).origin) == (NAME, "")
    assert [ledger.record(name).holders for name in (NAME, "first", "third")] == [2, 2, 2]
    ledger.free("first", "gone")
    assert ledger.record(NAME).holders == 2
    ledger.hold("second", "gone")
    ledger.free("third", "gone")
    ledger.free(NAME, "gone")
    assert ledger.record("second").holders == 1
    ledger.release("second")
    assert [record.holders for record in ledger.all()] == [0] * 4


def test_a_share_of_what_is_not_alive_is_refused(ledger: Ledger) -> None:
    with pytest.raises(UnknownDataspace):
        ledger.create("share", "share", PAGE, "uid 1001", origin=NAME)
    ledger.create(NAME, "ram", PAGE, "uid 1000")
    ledger.hold(NAME, "gone")
    with pytest.raises(InvalidTransition):
        ledger.create("share", "share", PAGE, "uid 1001", origin=NAME)
    assert ledger.revision == 2


def test_what_is_sealed_is_read_only(ledger: Ledger, log: Log) -> None:
    ledger.create(NAME, "ram", PAGE, "uid 1000")
    ledger.seal(NAME, actor="uid 1000")
    assert log.events[-1].kind is EventKind.SEALED
    ledger.attach(NAME, VM, 0, PAGE, 0, False)
    with pytest.raises(NotWritable):
        ledger.hand_out(NAME, True)


def test_other_objects_have_events_of_the_same_count(ledger: Ledger, log: Log) -> None:
    ledger.create(NAME, "ram", PAGE, "uid 1000")
    ledger.note(EventKind.SHARED, "shares/1", actor="uid 1000", detail={"dataspace": NAME})
    assert (log.events[-1].revision, log.events[-1].subject) == (2, "shares/1")
    assert ledger.revision == 2


def test_real_clocks_and_no_sink_are_the_default() -> None:
    ledger = Ledger()
    ledger.create("first", "ram", PAGE, "uid 1")
    ledger.create("second", "ram", PAGE, "uid 1")
    first, second = (record.created for record in ledger.alive())
    assert 0 < first.monotonic_ns <= second.monotonic_ns
    assert first.wall_ns > 10**18  # 2001


CHANGES: dict[str, Callable[[Ledger], None]] = {
    "attached": lambda ledger: ledger.attach(NAME, VM, 0, PAGE, 0, True),
    "detached": lambda ledger: ledger.detach(NAME, VM, 0, PAGE),
    "handed_out": lambda ledger: ledger.hand_out(NAME, True),
    "freed": lambda ledger: ledger.free(NAME, "gone"),
    "held": lambda ledger: ledger.hold(NAME, "gone"),
    "released": lambda ledger: ledger.release(NAME, "gone"),
}
PATHS: dict[State, list[str]] = {
    State.ALIVE: [],
    State.HELD: ["held"],
    State.FREED: ["freed"],
}
REFUSED = [
    (State.ALIVE, "released"),
    *((State.HELD, kind) for kind in CHANGES if kind != "released"),
    *((State.FREED, kind) for kind in CHANGES),
]


@pytest.mark.parametrize(("state", "change"), REFUSED)
def test_refused_transitions(ledger: Ledger, log: Log, state: State, change: str) -> None:
    ledger.create(NAME, "ram", PAGE, "uid 1000")
    for step in PATHS[state]:
        CHANGES[step](ledger)
    before = (ledger.record(NAME), ledger.totals(), list(log.events))
    with pytest.raises(InvalidTransition) as refusal:
        CHANGES[change](ledger)
    assert refusal.value.numbers == {"name": NAME, "event": change, "why": f"is {state}"}
    assert (ledger.record(NAME), ledger.totals(), log.events) == before


@pytest.mark.parametrize("change", ["freed", "held"])
def test_attached_dataspace_cannot_end(ledger: Ledger, change: str) -> None:
    ledger.create(NAME, "ram", PAGE, "uid 1000")
    ledger.attach(NAME, VM, 0, PAGE, 0, True)
    with pytest.raises(InvalidTransition, match="is attached"):
        CHANGES[change](ledger)
    ledger.detach(NAME, VM, 0, PAGE)
    CHANGES[change](ledger)


@pytest.mark.parametrize("change", CHANGES)
def test_unknown_names(ledger: Ledger, log: Log, change: str) -> None:
    with pytest.raises(UnknownDataspace) as refusal:
        CHANGES[change](ledger)
    assert refusal.value.numbers == {"name": NAME}
    with pytest.raises(UnknownDataspace):
        ledger.record(NAME)
    assert log.events == []


def create_another(ledger: Ledger) -> None:
    ledger.create("dataspaces/2", "ram", PAGE, "uid 1000")


@pytest.mark.parametrize("change", ["created", *CHANGES])
def test_nothing_changes_that_the_sink_did_not_take(ledger: Ledger, log: Log, change: str) -> None:
    ledger.create(NAME, "ram", PAGE, "uid 1000")
    if change == "detached":
        ledger.attach(NAME, VM, 0, PAGE, 0, True)
    if change == "released":
        ledger.hold(NAME)
    perform = CHANGES.get(change, create_another)
    before = (ledger.all(), ledger.totals(), ledger.revision)
    log.full = True
    with pytest.raises(LogFullError):
        perform(ledger)
    assert (ledger.all(), ledger.totals(), ledger.revision) == before
    log.full = False
    perform(ledger)
    assert [event.revision for event in log.events] == list(range(1, ledger.revision + 1))
    assert log.events[-1].kind == change


@pytest.mark.parametrize("freed", [False, True])
def test_names_are_not_reused(ledger: Ledger, freed: bool) -> None:
    ledger.create(NAME, "ram", PAGE, "uid 1000")
    if freed:
        ledger.free(NAME, "gone")
    with pytest.raises(DuplicateDataspace) as refusal:
        ledger.create(NAME, "ram", PAGE, "uid 1000")
    assert refusal.value.numbers == {"name": NAME}


def test_a_vcpu_that_could_not_be_made_can_be_made_later() -> None:
    ledger, page = Ledger(history=1), f"{VM}/vcpus/0"
    ledger.create(page, "vcpu_page", PAGE, "uid 1000")
    with pytest.raises(DuplicateDataspace):
        ledger.create(page, "vcpu_page", PAGE, "uid 1000")
    ledger.free(page, "vCPU could not be created")
    ledger.create(page, "vcpu_page", PAGE, "uid 1000")
    assert [record.state for record in ledger.all()] == [State.ALIVE]
    ledger.free(page, "session deleted")
    (record,) = ledger.all()
    assert record.cause == "session deleted"
    assert ledger.totals().created == ledger.totals().freed == 2


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [
        ("", "ram", PAGE),
        ("d", "io_mem", PAGE),
        ("d", "ram", 0),
        ("d", "rom", -PAGE),
        ("d", "rom", 1),
    ],
)
def test_impossible_dataspaces(ledger: Ledger, log: Log, name: str, kind: str, size: int) -> None:
    with pytest.raises(InvalidDataspace):
        ledger.create(name, kind, size, "uid 1000")  # type: ignore[arg-type]
    assert (log.events, ledger.all()) == ([], [])


def test_rom_is_never_writable(ledger: Ledger) -> None:
    ledger.create(NAME, "rom", PAGE, "uid 1000")
    for change in "attached", "handed_out":
        with pytest.raises(NotWritable):
            CHANGES[change](ledger)
    ledger.attach(NAME, VM, 0, PAGE, 0, False)
    ledger.hand_out(NAME, False)
    assert (ledger.record(NAME).mappings, ledger.record(NAME).hand_outs) == (1, 1)


@pytest.mark.parametrize(
    ("gpa", "size", "offset", "refusal"),
    [
        (1, PAGE, 0, InvalidRange),
        (0, 0, 0, InvalidRange),
        (2**64 - PAGE, 2 * PAGE, 0, InvalidRange),
        (0, PAGE, 1, InvalidDataspace),
        (0, PAGE, 4 * PAGE, InvalidDataspace),
        (0, 2 * PAGE, 3 * PAGE, InvalidDataspace),
        (9 * PAGE, PAGE, 0, RegionConflict),
        (7 * PAGE, 4 * PAGE, 0, RegionConflict),
    ],
)
def test_impossible_mappings(  # noqa: PLR0917
    ledger: Ledger, log: Log, gpa: int, size: int, offset: int, refusal: type[DataspaceError]
) -> None:
    ledger.create(NAME, "ram", 4 * PAGE, "uid 1000")
    ledger.attach(NAME, VM, 8 * PAGE, 2 * PAGE, 0, True)
    with pytest.raises(refusal):
        ledger.attach(NAME, VM, gpa, size, offset, True)
    assert (ledger.record(NAME).mappings, len(log.events)) == (1, 2)


def test_mappings_of_several_sessions_are_apart(ledger: Ledger) -> None:
    ledger.create(NAME, "ram", PAGE, "uid 1000")
    for session in VM, "sessions/2":
        ledger.attach(NAME, session, 0, PAGE, 0, True)
    ledger.detach(NAME, VM, 0, PAGE)
    assert ledger.record(NAME).attachments == (
        ("sessions/2", Attachment(0, PAGE, NAME, 0, True, True)),
    )
    assert ledger.record(NAME).mappings == 2


def test_detach_of_a_part_splits(ledger: Ledger) -> None:
    ledger.create(NAME, "ram", 4 * PAGE, "uid 1000")
    ledger.attach(NAME, VM, 8 * PAGE, 3 * PAGE, PAGE, True)
    ledger.detach(NAME, VM, 9 * PAGE, PAGE)
    assert ledger.record(NAME).attachments == (
        (VM, Attachment(8 * PAGE, PAGE, NAME, PAGE, True, True)),
        (VM, Attachment(10 * PAGE, PAGE, NAME, 3 * PAGE, True, True)),
    )
    assert ledger.record(NAME).mappings == 1


@pytest.mark.parametrize(
    ("session", "gpa", "size"),
    [
        ("sessions/2", 8, 1),
        (VM, 7, 2),
        (VM, 8, 3),
        (VM, 20, 1),
        (VM, 8.5, 1),
        (VM, 8, 0),
        (VM, 9, -1),
    ],
)
def test_detach_of_what_is_not_attached(
    ledger: Ledger, log: Log, session: str, gpa: float, size: int
) -> None:
    ledger.create(NAME, "ram", 4 * PAGE, "uid 1000")
    ledger.attach(NAME, VM, 8 * PAGE, 2 * PAGE, 0, True)
    with pytest.raises(InvalidRange):
        ledger.detach(NAME, session, int(gpa * PAGE), size * PAGE)
    assert len(ledger.record(NAME).attachments) == 1
    assert len(log.events) == 2


def test_totals_follow_each_state(ledger: Ledger) -> None:
    ledger.create("a", "ram", 4 * PAGE, "uid 1000")
    ledger.create("b", "rom", 2 * PAGE, "uid 1000")
    assert ledger.totals() == Totals(live=2, live_bytes=6 * PAGE, peak_bytes=6 * PAGE, created=2)
    ledger.hold("a")
    assert ledger.totals() == Totals(
        live=1,
        live_bytes=2 * PAGE,
        held=1,
        held_bytes=4 * PAGE,
        peak_bytes=6 * PAGE,
        created=2,
    )
    ledger.create("c", "ram", PAGE, "uid 1000")
    ledger.free("b", "gone")
    ledger.release("a")
    assert ledger.totals() == Totals(
        live=1, live_bytes=PAGE, peak_bytes=7 * PAGE, created=3, freed=2
    )


def test_queries_by_state(ledger: Ledger) -> None:
    for name in "abcd":
        ledger.create(name, "ram", PAGE, "uid 1000")
    ledger.free("c", "gone")
    ledger.hold("b")

    def names(records: list[Record]) -> str:
        return "".join(record.name for record in records)

    assert names(ledger.alive()) == "ad"
    assert names(ledger.held()) == "b"
    assert names(ledger.all()) == "cabd"


@pytest.mark.parametrize(
    ("history", "kept"), [(0, []), (2, ["d2", "d3"]), (4, ["d0", "d1", "d2", "d3"])]
)
def test_oldest_freed_records_are_dropped_first(history: int, kept: list[str]) -> None:
    ledger = Ledger(history=history)
    for number in range(4):
        ledger.create(f"d{number}", "ram", PAGE, "uid 1000")
        ledger.free(f"d{number}", "gone")
    ledger.create("alive", "ram", PAGE, "uid 1000")
    assert [record.name for record in ledger.all()] == [*kept, "alive"]
    assert ledger.totals() == Totals(live=1, live_bytes=PAGE, peak_bytes=PAGE, created=5, freed=4)


def test_history_cannot_be_negative() -> None:
    with pytest.raises(ValueError, match="history of -1"):
        Ledger(history=-1)


def test_events_of_other_objects_and_labels_share_the_revisions() -> None:
    log = Log()
    ledger = Ledger(log, Clock(), revision=41, boot_id="b")
    assert ledger.revision == 41
    opened: Detail = {"kind": "session", "holder": "1:1:1"}
    ledger.note(EventKind.OPENED, VM, actor="1:1:1", cause="c", detail=opened, label="web")
    page = f"{VM}/vcpus/0"
    ledger.create(page, "vcpu_page", PAGE, "1:1:1", label="web")
    ledger.create(NAME, "ram", PAGE, "1:1:1")
    ledger.attach(NAME, VM, 0, PAGE, 0, True, label="web")
    ledger.detach(NAME, VM, 0, PAGE, label="web")
    ledger.hand_out(page, True)
    ledger.hold(page)
    ledger.release(page)
    ledger.note(EventKind.CLOSED, VM)
    assert log.events[0] == Event(
        42, 1, 1001, EventKind.OPENED, VM, "1:1:1", "c", opened, label="web", boot_id="b"
    )
    assert [event.revision for event in log.events] == list(range(42, 51))
    assert [event.label for event in log.events] == ["web", "web", "", *["web"] * 5, ""]
    assert {event.boot_id for event in log.events} == {"b"}
    assert [record.name for record in ledger.all()] == [page, NAME]


def test_what_each_holder_has(ledger: Ledger) -> None:
    ledger.create("a", "ram", 4 * PAGE, "uid 1")
    ledger.create("b", "rom", PAGE, "uid 1")
    ledger.create("c", "ram", PAGE, "uid 2")
    ledger.hold("a")
    ledger.free("c", "gone")
    (only,) = ledger.totals_by_holder().items()
    assert only[0] == "uid 1"
    assert (only[1].live, only[1].live_bytes) == (1, PAGE)
    assert (only[1].held, only[1].held_bytes) == (1, 4 * PAGE)


def test_the_most_that_there_was_of_each_kind(ledger: Ledger) -> None:
    ledger.create("a", "ram", 4 * PAGE, "uid 1")
    ledger.create("b", "rom", PAGE, "uid 1")
    ledger.hold("a")
    ledger.create("c", "ram", PAGE, "uid 2")
    ledger.release("a")
    ledger.free("b", "gone")
    ledger.create("d", "ram", 2 * PAGE, "uid 1")
    assert ledger.peaks_by_kind() == {"ram": 5 * PAGE, "rom": PAGE}


def test_living_records_by_kind_and_session(ledger: Ledger) -> None:
    page = f"{VM}/vcpus/0"
    for name, kind in ((NAME, "ram"), (page, "vcpu_page"), ("other", "ram")):
        ledger.create(name, kind, PAGE, "uid 1")  # type: ignore[arg-type]
    ledger.attach(NAME, VM, 0, PAGE, 0, True)
    of_session = ledger.created_after(0, session=VM)
    assert [record.name for _, record in of_session] == [NAME, page]
    assert [record.name for _, record in ledger.created_after(0, kinds=["vcpu_page"])] == [page]
