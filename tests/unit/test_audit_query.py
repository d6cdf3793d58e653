"""Queries of the audit log, over several files."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from core_service.audit import AuditError, Query, schema
from core_service.audit.chain import row_of
from core_service.audit.query import EventFilter, RecordFilter
from core_service.audit.schema import files_of
from core_service.audit.store import Store
from dataspace.record import Event, EventKind
from tests.unit.audit_events import ALICE, BOB, SECOND, START, Script, created

C, F = EventKind.CREATED, EventKind.FREED


def script() -> list[Event]:
    """Twelve events; the files of the store below begin with 1, 4, 7, 10."""
    say = Script()
    return [
        say(EventKind.STARTED, "cores/1", {"kind": "core"}),
        say(EventKind.OPENED, "sessions/1", {"kind": "session", "holder": ALICE}, actor=ALICE),
        say(C, "dataspaces/1", created(ALICE, 4096), actor=ALICE),
        say(C, "dataspaces/2", created(BOB, 8192), actor=BOB),
        say(EventKind.ATTACHED, "dataspaces/1", {"session": "sessions/1", "gpa": 1 << 63}),
        say(F, "dataspaces/2", actor=BOB, cause="freed by its owner"),
        say(EventKind.HELD, "dataspaces/1", cause="client ended"),
        say(C, "dataspaces/3", created(BOB, 12288), actor=BOB),
        say(EventKind.CLOSED, "sessions/1", cause="client ended"),
        say(EventKind.RELEASED, "dataspaces/1"),
        say(C, "dataspaces/4", created(ALICE, 4096, "rom"), actor=ALICE),
        say(EventKind.HANDED_OUT, "dataspaces/3", {"writable": True}, actor=BOB),
    ]


def fill(directory: Path, keep: int = 0) -> Query:
    """Write it, three events a file."""
    with closing(Store(directory, "process", 3, keep)) as store:
        for event in script():
            store.append([row_of(event)])
    return Query(directory)


@pytest.fixture(scope="module")
def query(tmp_path_factory: pytest.TempPathFactory) -> Query:
    return fill(tmp_path_factory.mktemp("audit"))


def second(number: int) -> int:
    """When event `number` was."""
    return START + number * SECOND


@pytest.mark.parametrize("page", [1, 2, 3, 5, 12, 100])
def test_pages_are_the_whole_log(query: Query, page: int) -> None:
    found: list[Event] = []
    while events := query.events(len(found), page):
        assert len(events) == min(page, 12 - len(found))
        found += [event for event, _ in events]
    assert found == script()


@pytest.mark.parametrize(
    ("only", "revisions"),
    [
        (EventFilter(subject="dataspaces/1"), [3, 5, 7, 10]),
        (EventFilter(subject="dataspaces/1", uids={1000}), [3, 5, 7, 10]),
        (EventFilter(subject="dataspaces/1", uids={1001}), []),
        (EventFilter(uids={1000}), [2, 3, 5, 7, 9, 10, 11]),
        (EventFilter(uids={1001}), [4, 6, 8, 12]),
        (EventFilter(uids={0}), []),
        (EventFilter(uids={1000, 1001}, until=second(7)), [2, 3, 4, 5, 6]),
        (EventFilter(uids={0, 1001}, kinds=["created"]), [4, 8]),
        (EventFilter(kinds=["created"]), [3, 4, 8, 11]),
        (EventFilter(kinds=["freed", "released"]), [6, 10]),
        (EventFilter(kinds=["created"], uids={1001}), [4, 8]),
        (EventFilter(since=second(8)), [8, 9, 10, 11, 12]),
        (EventFilter(until=second(3)), [1, 2]),
        (EventFilter(since=second(3), until=second(6)), [3, 4, 5]),
        (EventFilter(since=second(3), until=second(6), uids={1001}), [4]),
        (EventFilter(since=second(13)), []),
        (EventFilter(until=second(1)), []),
    ],
)
def test_filters_of_events(query: Query, only: EventFilter, revisions: list[int]) -> None:
    assert [event.revision for event, _ in query.events(0, 100, only)] == revisions
    later = [event.revision for event, _ in query.events(5, 2, only)]
    assert later == [revision for revision in revisions if revision > 5][:2]


def test_a_clock_that_was_set_back_hides_nothing(tmp_path: Path) -> None:
    walls = [100, 200, 50, 150, 60]
    with closing(Store(tmp_path, "process", 100, 0)) as store:
        say = Script()
        for wall in walls:
            event = row_of(say(C, f"dataspaces/{wall}", created()))
            store.append([event._replace(wall_ns=wall)])
    query = Query(tmp_path)
    for since in range(40, 210, 10):
        found = query.events(0, 100, EventFilter(since=since, until=since + 60))
        assert [event.wall_ns for event, _ in found] == [
            wall for wall in walls if since <= wall < since + 60
        ]


def test_the_history_of_an_object_ends_with_it(query: Query) -> None:
    kinds = [event.kind.value for event, _ in query.history("dataspaces/1")]
    assert kinds == ["created", "attached", "held", "released"]
    assert len(query.history("dataspaces/1", 2)) == 2
    assert query.history("dataspaces/9") == []


@pytest.mark.parametrize(
    ("only", "names"),
    [
        (RecordFilter(), "1234"),
        (RecordFilter(alive_only=True), "34"),
        (RecordFilter(uids={1000}), "14"),
        (RecordFilter(uids={1000, 1001}), "1234"),
        (RecordFilter(uids=frozenset()), ""),
        (RecordFilter(uids={1001}, alive_only=True), "3"),
        (RecordFilter(kinds=["rom"]), "4"),
        (RecordFilter(name="dataspaces/2"), "2"),
        (RecordFilter(at=second(2)), ""),
        (RecordFilter(at=second(3)), "1"),
        (RecordFilter(at=second(5)), "12"),
        (RecordFilter(at=second(6)), "1"),
        (RecordFilter(at=second(9)), "13"),
        (RecordFilter(at=second(10)), "3"),
        (RecordFilter(at=second(5), uids={1001}), "2"),
        (RecordFilter(at=second(1000)), "34"),
        (RecordFilter(at=second(5), alive_only=True), ""),
        (RecordFilter(at=second(9), alive_only=True), "3"),
    ],
)
def test_filters_of_records(query: Query, only: RecordFilter, names: str) -> None:
    assert [life.name[-1] for life in query.records(0, 100, only)] == list(names)
    assert [life.name[-1] for life in query.records(0, 1, only)] == list(names[:1])
    assert [life.name[-1] for life in query.records(3, 100, only)] == list(names.replace("1", ""))


@pytest.mark.parametrize("file_events", [1, 3, 100])
@pytest.mark.parametrize("ahead", [1000, -1000])
def test_what_lived_at_a_moment_whatever_was_done_to_the_clock(
    tmp_path: Path, file_events: int, ahead: int
) -> None:
    """It was wrong until it was set right between events 2 and 3."""
    say = Script()
    say.clock_ahead = ahead
    events = [say(C, "dataspaces/1", created()), say(C, "dataspaces/2", created())]
    say.clock_ahead = 0
    events += [say(F, "dataspaces/1"), say(C, "dataspaces/3", created()), say(F, "dataspaces/2")]
    with closing(Store(tmp_path, "process", file_events, 0)) as store:
        for event in events:
            store.append([row_of(event)])
    query = Query(tmp_path)
    living = {
        number: [life.name[-1] for life in query.records(0, 9, RecordFilter(at=second(number)))]
        for number in (3, 4, 5)
    }
    assert living == {3: ["2"], 4: ["2", "3"], 5: ["3"]}


@pytest.mark.parametrize("only", [RecordFilter(), RecordFilter(at=second(4))])
def test_a_record_is_as_it_is_now_whatever_file_it_began_in(
    query: Query, only: RecordFilter
) -> None:
    life = query.records(0, 1, only)[0]
    assert (life.name, life.kind, life.size, life.holder, life.uid) == (
        "dataspaces/1",
        "ram",
        4096,
        ALICE,
        1000,
    )
    assert (life.revision, life.created_wall_ns) == (3, second(3))
    assert (life.held_wall_ns, life.ended_revision, life.ended_wall_ns) == (
        second(7),
        10,
        second(10),
    )
    assert (life.cause, life.mappings, life.handed_out) == ("client ended", 1, 0)


def test_other_objects_are_records_too(query: Query) -> None:
    (session,) = query.records(only=RecordFilter(kinds=["session"]))
    assert (session.name, session.uid, session.ended_revision) == ("sessions/1", 1000, 9)


def test_totals_count_since_the_log_began(tmp_path: Path) -> None:
    query = fill(tmp_path, keep=1)
    sums = {(total.uid, total.kind): total for total in query.totals()}
    bob = sums[1001, "ram"]
    assert (bob.created, bob.created_bytes, bob.ended, bob.ended_bytes) == (2, 20480, 1, 8192)
    assert (sums[1000, "ram"].created, sums[1000, "ram"].ended) == (1, 1)
    assert (sums[-1, "core"].created, sums[-1, "core"].ended) == (1, 0)


def test_retention_keeps_what_lives(tmp_path: Path) -> None:
    query = fill(tmp_path, keep=2)
    assert len(files_of(tmp_path)) == 2
    assert (query.oldest_revision(), query.last_revision()) == (7, 12)
    assert [event.revision for event, _ in query.events()] == [7, 8, 9, 10, 11, 12]
    assert [life.name[-1] for life in query.records()] == ["1", "3", "4"]
    assert [event.kind.value for event, _ in query.history("dataspaces/1")] == ["held", "released"]


@pytest.mark.parametrize("ask", ["events", "records", "totals"])
def test_a_file_that_goes_before_it_is_read_has_gone_before(
    tmp_path: Path, ask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = fill(tmp_path)
    first, *kept = files_of(tmp_path)
    answers = iter([[first], kept])
    first.unlink()
    expected = getattr(query, ask)()
    monkeypatch.setattr(schema, "files_of", lambda _directory: next(answers))
    assert getattr(query, ask)() == expected


def test_a_directory_without_a_log_has_nothing(tmp_path: Path) -> None:
    query = Query(tmp_path)
    assert (query.oldest_revision(), query.last_revision()) == (1, 0)
    assert (query.events(), query.records(), query.totals()) == ([], [], [])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    query = fill(tmp_path)
    path = files_of(tmp_path)[0]
    path.write_bytes(b"no database " * 1000)
    with pytest.raises(AuditError, match="not a database") as error:
        query.events()
    assert error.value.path == path
