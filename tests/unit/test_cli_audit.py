"""What the audit's commands make of core's answers."""

from __future__ import annotations

import json
import sys

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from vmsession.v1.audit_pb2 import Discrepancy, Event, GetTotalsResponse, VerifyResponse
from vmsession.v1.core_pb2 import ClientIdentity
from vmsession.v1.vm_session_pb2 import Vcpu

from vmm_client.cli.audit import verify
from vmm_client.cli.events import COLUMNS, event_row
from vmm_client.cli.output import Row, show_as_it_comes
from vmm_client.cli.sample import Sample, vcpu_rows

EVENT = Event(
    revision=7,
    time=Timestamp(seconds=1_795_000_000, nanos=5),
    monotonic_ns=9,
    boot_id="b",
    kind="attached",
    subject="dataspaces/1",
    actor=ClientIdentity(uid=1000, gid=100, pid=42),
    label="mine",
    detail='{"gpa":4096,"session":"sessions/1","size":65536,"writable":true}',
    hash=b"\xab\xcd",
)


def test_an_event_is_told_in_words_and_exactly() -> None:
    row = event_row(EVENT)
    assert row["about"] == "label mine, gpa 0x1000, session sessions/1, size 64 KiB, writable yes"
    assert row["detail"] == json.loads(EVENT.detail)
    assert (row["uid"], row["gid"], row["pid"]) == (1000, 100, 42)
    assert (row["time"], row["hash"]) == ("2026-11-18T11:06:40.000000005Z", "abcd")


def test_what_core_did_itself_has_no_actor() -> None:
    row = event_row(Event(kind="stopped", subject="core"))
    assert (row["uid"], row["gid"], row["pid"], row["about"]) == (None, None, None, "")


def test_rows_come_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    def rows() -> list[Row]:
        return [event_row(EVENT), event_row(EVENT)]

    show_as_it_comes(rows(), COLUMNS, as_json=True)
    assert json.loads(capsys.readouterr().out) == rows()
    show_as_it_comes([], COLUMNS, as_json=True)
    assert json.loads(capsys.readouterr().out) == []
    show_as_it_comes(rows(), COLUMNS, as_json=True, lines=True)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows()
    show_as_it_comes(rows(), ("object", "event"), as_json=False)
    assert capsys.readouterr().out == "object\tevent\n" + "dataspaces/1\tattached\n" * 2


def test_a_terminal_gets_aligned_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_as_it_comes([event_row(EVENT)], ("revision", "event"), as_json=False)
    assert capsys.readouterr().out == "revision  event\n7         attached\n"


def sample(monotonic_ns: int, *vcpus: Vcpu) -> Sample:
    return Sample(monotonic_ns, GetTotalsResponse(), [], list(vcpus), [])


def test_rates_are_those_between_two_looks() -> None:
    before = sample(0, Vcpu(name="a", exits=2**32 - 50, run_time_ns=0), Vcpu(name="b", exits=5))
    after = sample(
        2 * 10**9,
        Vcpu(name="a", exits=50, run_time_ns=10**9),
        Vcpu(name="b", exits=5),
        Vcpu(name="new", exits=1, run_time_ns=3),
    )
    rows = vcpu_rows(before, after)
    assert [row["exits_per_s"] for row in rows] == [50.0, 0.0, None]
    assert [row["cpu_percent"] for row in rows] == [50.0, None, None]
    assert [row["run_time_s"] for row in rows] == [1.0, None, 0.0]


class Verified:
    """A core that has verified."""

    def __init__(self, *found: Discrepancy) -> None:
        self.answer = VerifyResponse(discrepancies=found, revision=9, events_checked=9)

    def __enter__(self) -> Verified:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def verify(self, *, whole_chain: bool) -> VerifyResponse:
        assert whole_chain
        return self.answer


WRONG = Discrepancy(check="kernel", subject="dataspaces/1", message="no fd\nof it")


def test_a_verification_that_agrees_is_status_0(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "connect", lambda _: Verified())
    assert verify.verify(whole_chain=True) == 0
    assert capsys.readouterr().out == (
        "everything agrees at revision 9; compared: 9 events, 0 mappings, 0 descriptors, 0 accounts\n"
    )


def test_a_verification_that_does_not_is_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "connect", lambda _: Verified(WRONG))
    assert verify.verify(whole_chain=True) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "kernel\tdataspaces/1\tno fd\N{REPLACEMENT CHARACTER}of it"
    assert lines[2].startswith("1 found that does not agree at revision 9; ")
    assert verify.verify(whole_chain=True, json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert [one["check"] for one in told["discrepancies"]] == ["kernel"]
    assert told["checked"]["events"] == 9
