"""Verification of the store: whole stores pass, and what was done to a store is found and named."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_service.audit import AuditError, AuditLog, verify_chain
from core_service.audit.chain import GENESIS, Row, chained, row_of
from core_service.audit.schema import Head, files_of
from core_service.audit.store import Store
from dataspace.record import Detail, Event, EventKind
from tests.unit.audit_events import ALICE, BOB, Script, created

EVENTS = 40


def life(script: Script, number: int) -> Iterator[Event]:
    """Five events of one dataspace, of which every fourth stays."""
    name, owner = f"dataspaces/{number}", (ALICE, BOB)[number % 2]
    yield script(EventKind.CREATED, name, created(owner), actor=owner)
    yield script(EventKind.ATTACHED, name, {"session": "sessions/1", "gpa": 0, "size": 4096})
    yield script(EventKind.HANDED_OUT, name, {"writable": True}, actor=owner)
    yield script(EventKind.DETACHED, name, {"session": "sessions/1", "gpa": 0, "size": 4096})
    yield script(EventKind.FREED if number % 4 else EventKind.SEALED, name, actor=owner)


def write(directory: Path, events: int = EVENTS, file_events: int = 10, keep: int = 0) -> Head:
    """Fill a store; each event is a group of its own, so that files are `file_events` long."""
    script = Script()
    with closing(Store(directory, "process", file_events, keep)) as store:
        for number in range(events // 5):
            for event in life(script, number):
                store.append([row_of(event)])
        return store.head


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Head]:
    """A store of four files."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, write(directory)


@pytest.fixture
def store(whole: tuple[Path, Head], tmp_path: Path) -> Path:
    """A copy of it."""
    for path in files_of(whole[0]):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_whole_store_agrees(whole: tuple[Path, Head]) -> None:
    directory, head = whole
    assert [path.name[-9:-7] for path in files_of(directory)] == ["01", "11", "21", "31"]
    assert verify_chain(directory, head=head) == (EVENTS, head, [])


@pytest.mark.parametrize("after", [1, 9, 10, 11, 25, 39, 40])
def test_a_part_is_checked_on_its_own(whole: tuple[Path, Head], after: int) -> None:
    directory, head = whole
    assert verify_chain(directory, after, head) == (EVENTS - after, head, [])


def forged(connection: sqlite3.Connection, revision: int) -> None:
    """Write an event anew, with a hash that fits the one before."""
    row = row_of(Script(revision - 1)(EventKind.SEALED, "dataspaces/9", actor=BOB))
    query = "SELECT hash FROM events WHERE revision = ?"
    (before,) = connection.execute(query, (revision - 1,)).fetchone()
    connection.execute("DELETE FROM events WHERE revision = ?", (revision,))
    marks = ", ".join("?" * (len(row) + 1))
    connection.execute(f"INSERT INTO events VALUES ({marks})", (*row, chained(before, row)))


def swapped(connection: sqlite3.Connection) -> None:
    """Let two events change their places."""
    connection.execute("UPDATE events SET revision = 999 WHERE revision = 12")
    connection.execute("UPDATE events SET revision = 12 WHERE revision = 13")
    connection.execute("UPDATE events SET revision = 13 WHERE revision = 999")


def sql(statement: str) -> Callable[[sqlite3.Connection], object]:
    """What runs a statement."""
    return lambda connection: connection.execute(statement)


TAMPERED: list[tuple[str, Callable[[sqlite3.Connection], object], str]] = [
    *(
        (f"{column} edited", sql(f"UPDATE events SET {column} = {value} WHERE revision = 14"), told)
        for told in ["event 14 does not have its hash"]
        for column, value in (
            ("monotonic_ns", 1),
            ("wall_ns", 1),
            ("boot_id", "'x'"),
            ("kind", "'lost'"),
            ("subject", "'x'"),
            ("actor", "'0:0:1'"),
            ("label", "'x'"),
            ("cause", "'x'"),
            ("detail", "'{\"session\": \"sessions/1\"}'"),
            ("hash", "zeroblob(32)"),
        )
    ),
    ("row deleted", sql("DELETE FROM events WHERE revision = 14"), "event 15 comes after 13"),
    ("first row deleted", sql("DELETE FROM events WHERE revision = 11"), "event 12 comes after 10"),
    ("rows swapped", swapped, "event 12 does not have its hash"),
    ("row forged", lambda connection: forged(connection, 14), "event 15 does not have its hash"),
    ("last row deleted", sql("DELETE FROM events WHERE revision = 20"), "event 21, after 19"),
    ("last row forged", lambda connection: forged(connection, 20), "does not follow from the file"),
    ("file's start edited", sql("UPDATE file SET before = zeroblob(32)"), "does not follow from"),
    ("object edited", sql("UPDATE objects SET holder = '0:0:0' WHERE revision = 16"), "not '1001"),
    ("object deleted", sql("DELETE FROM objects WHERE revision = 16"), "is not in objects"),
    (
        "object invented",
        sql("INSERT INTO objects SELECT 17, 'x', kind, size, holder, uid, label, origin, 1, 1, '',"
            " 1, 1, 1, 1, '', '', 0, 0 FROM objects LIMIT 1"),
        "the events make",
    ),
    ("sum edited", sql("UPDATE sums SET created = created + 1"), "the sums are not"),
    ("event hidden", sql("DELETE FROM concerns WHERE revision = 14"), "event 14 is hidden"),
    ("carried edited", sql("UPDATE carried_objects SET size = 1"), "what it carried on"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("tamper", "told"), [case[1:] for case in TAMPERED], ids=[case[0] for case in TAMPERED]
)
def test_what_was_done_to_a_file_is_found(
    store: Path, tamper: Callable[[sqlite3.Connection], object], told: str
) -> None:
    path = files_of(store)[1]
    with closing(sqlite3.connect(path)) as connection, connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'"):
            connection.execute(f"DROP TRIGGER {name}")
        tamper(connection)
    found = verify_chain(store).discrepancies
    assert any(told in message for _, message in found), found
    assert found[0].subject in {path.name, files_of(store)[2].name}


def test_a_file_that_is_missing_in_the_middle_is_found(store: Path) -> None:
    files_of(store)[1].unlink()
    _, _, found = verify_chain(store)
    assert "begins with event 21, after 10" in found[0].message


def test_a_file_that_is_missing_at_the_end_is_found_by_the_head(
    store: Path, whole: tuple[Path, Head]
) -> None:
    files_of(store)[-1].unlink()
    assert verify_chain(store).discrepancies == []
    _, _, found = verify_chain(store, head=whole[1])
    assert [message for _, message in found] == ["ends with event 30, not 40: cut off"]


def test_a_log_that_was_written_anew_is_found_by_the_head(store: Path) -> None:
    _, _, found = verify_chain(store, head=Head(25, bytes(32)))
    assert [message for _, message in found] == ["event 25 is not the one that was recorded"]


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_found(store: Path, part: float) -> None:
    path = files_of(store)[1]
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    found = verify_chain(store).discrepancies
    assert found[0].subject == path.name


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: path.write_bytes(b"no database " * 1000), "file is not a database"),
        (lambda path: path.write_bytes(b""), "no such table: file"),
        (lambda path: path.write_bytes(path.read_bytes()[:40000]), "malformed"),
        (lambda path: path.rename(path.with_name(path.name.replace("31", "32"))), "it was renamed"),
    ],
)
def test_a_broken_store_is_not_written(
    store: Path, spoil: Callable[[Path], object], told: str
) -> None:
    spoil(files_of(store)[-1])
    with pytest.raises(AuditError, match=told) as error:
        AuditLog.open(store)
    assert error.value.path == files_of(store)[-1]


def test_a_store_whose_latest_event_was_edited_is_not_written(store: Path) -> None:
    with closing(sqlite3.connect(files_of(store)[-1])) as connection, connection:
        connection.execute("DROP TRIGGER events_update")
        connection.execute("UPDATE events SET cause = 'x' WHERE revision = 40")
    with pytest.raises(AuditError, match="event 40 does not follow from the one before"):
        AuditLog.open(store)


_TEXT = st.text(st.characters(codec=None), max_size=8)
_DETAIL = st.dictionaries(_TEXT, st.one_of(st.integers(), st.booleans(), _TEXT), max_size=3)


@given(
    st.lists(st.tuples(_TEXT, _TEXT, _DETAIL), min_size=1, max_size=12),
    st.data(),
)
@settings(deadline=None, max_examples=200)
def test_no_other_row_has_the_same_hash(
    fields: list[tuple[str, str, Detail]], data: st.DataObject
) -> None:
    script, before, hashes = Script(), GENESIS, []
    rows = []
    for subject, cause, detail in fields:
        rows.append(row_of(script(EventKind.CREATED, subject, detail, cause=cause)))
        before = chained(before, rows[-1])
        hashes.append(before)
    number = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.sampled_from(["subject", "actor", "label", "cause", "detail"]))
    old = getattr(rows[number], column)
    changed = rows[number]._asdict() | {column: data.draw(_TEXT.filter(lambda t: t != old))}
    rows[number] = Row(**changed)
    before, again = GENESIS, []
    for row in rows:
        before = chained(before, row)
        again.append(before)
    assert again[:number] == hashes[:number]
    assert all(one != other for one, other in zip(again[number:], hashes[number:], strict=True))


def test_files_that_are_no_longer_kept_leave_a_store_that_agrees(tmp_path: Path) -> None:
    head = write(tmp_path, file_events=7, keep=2)
    assert len(files_of(tmp_path)) == 2
    checked = verify_chain(tmp_path, head=head)
    assert checked.discrepancies == []
    assert 0 < checked.events <= 14
