"""The journal's protocol: fields that nobody can forge, and a log that never holds core up."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from core_service import journal
from core_service.journal import Journal, is_stderr, serialized
from core_service.logs import entry
from tests.journal_socket import JournalSocket, parsed


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[JournalSocket]:
    """The journal, at `tmp_path / "journal"`."""
    listening = JournalSocket(tmp_path / "journal")
    yield listening
    listening.close()


@pytest.fixture
def sending(tmp_path: Path) -> Iterator[Journal]:
    """What sends there."""
    sending = Journal(str(tmp_path / "journal"))
    yield sending
    sending.close()


@pytest.mark.parametrize(
    "value",
    ["", "plain", "a=b", "two\nMESSAGE=forged", "\n", "MESSAGE\n\x01\0\0\0\0\0\0\0x\n", "ä\0\r"],
)
def test_no_value_begins_another_field(value: str) -> None:
    assert parsed(serialized({"MESSAGE": value, "LAST": "1"})) == {"MESSAGE": value, "LAST": "1"}


@pytest.mark.parametrize("name", ["", "_PID", "message", "A B", "A=", "A\nB", "1A", "A" * 65])
def test_names_that_are_the_journals_own_or_none(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a field"):
        serialized({name: "x"})


def test_a_surrogate_is_told_in_ascii() -> None:
    assert parsed(serialized({"MESSAGE": "\udcff"})) == {"MESSAGE": "\\udcff"}


def test_an_entry_that_is_too_large_for_a_datagram(
    listening: JournalSocket, sending: Journal
) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    fields = {"MESSAGE": "x" * 700_000, "VMSESSION_EXCEPTION": "y\n" * 300_000}
    sending.send(fields)
    assert listening.next() == fields
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_field_has_a_bound(listening: JournalSocket, sending: Journal) -> None:
    sending.send({"MESSAGE": "x" * (journal.ENTRY_LIMIT + 1)})
    assert len(listening.next()["MESSAGE"]) == journal.ENTRY_LIMIT


def test_what_the_journal_does_not_take_is_counted(
    listening: JournalSocket, sending: Journal
) -> None:
    taken = 0
    while not sending.dropped:
        sending.send({"MESSAGE": "x"})
        taken += not sending.dropped
    sending.send({"MESSAGE": "x"})
    assert sending.dropped == 2
    for _ in range(taken):
        assert listening.next() == {"MESSAGE": "x"}
    sending.send({"MESSAGE": "again"})
    assert listening.next() == {"MESSAGE": "again", "VMSESSION_DROPPED": "2"}
    assert sending.dropped == 0


def test_a_journal_that_is_gone(tmp_path: Path, listening: JournalSocket, sending: Journal) -> None:
    listening.close()
    sending.send({"MESSAGE": "x"})
    (tmp_path / "journal").unlink()
    sending.send({"MESSAGE": "x"})
    assert sending.dropped == 2
    restarted = JournalSocket(tmp_path / "journal")
    sending.send({"MESSAGE": "y"})
    assert restarted.next() == {"MESSAGE": "y", "VMSESSION_DROPPED": "2"}
    restarted.close()


def test_whether_stderr_is_the_journal() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        status = os.fstat(ours.fileno())
        stream = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert is_stderr(stream, ours.fileno())
        assert not is_stderr(stream, theirs.fileno())
        assert not is_stderr({}, ours.fileno())
        assert not is_stderr({"JOURNAL_STREAM": "x"}, ours.fileno())
    assert not is_stderr(stream, ours.fileno())


def test_the_fields_of_an_entry() -> None:
    event = {"event": "session closed", "level": "warning", "session": "sessions/7", "uid": 1000}
    assert entry(None, "", event) == {
        "MESSAGE": "session closed session='sessions/7' uid=1000",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "vmcore",
        "VMSESSION_EVENT": "session closed",
        "VMSESSION_SESSION": "sessions/7",
        "VMSESSION_UID": "1000",
    }


def test_a_message_is_one_line_whatever_is_told_and_a_traceback_follows() -> None:
    event = {"event": "defect", "level": "error", "why": "a\nb", "exception": "Traceback\n  x"}
    told = entry(None, "", event)
    assert told["MESSAGE"] == "defect why='a\\nb'\nTraceback\n  x"
    assert told["VMSESSION_WHY"] == "a\nb"
    assert told["PRIORITY"] == "3"
