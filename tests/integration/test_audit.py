"""The audit over the life of one core, and over its end: every change, before it is answered."""

from __future__ import annotations

import json
import os
import resource
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from vmsession.v1 import audit_pb2, core_pb2, dataspace_pb2, vm_session_pb2

from core_service.audit import Query, verify_chain
from dataspace.vcpu_page import ABI
from tests.integration.refusals import error_info, reason_of
from tests.integration.running_core import RunningCore, Stubs, cancel
from tests.integration.waiting import eventually

PAGE = 4096
LABEL = "web server"


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    """A log for several cores, one after the other."""
    return tmp_path / "audit"


@pytest.fixture
def serve(audit: Path) -> Iterator[Callable[..., tuple[RunningCore, Stubs]]]:
    """Starts cores on that log."""
    running: list[tuple[RunningCore, Stubs]] = []

    def serve(*options: str) -> tuple[RunningCore, Stubs]:
        core = RunningCore("--audit-directory", str(audit), *options)
        running.append((core, Stubs(core.socket)))
        return running[-1]

    yield serve
    try:
        for core, _ in running:
            if core.process.poll() is None:
                core.stop()
    finally:
        for core, stubs in running:
            stubs.close()
            core.close()


Serve = Callable[..., tuple[RunningCore, Stubs]]


def create(stubs: Stubs, size: int = PAGE) -> str:
    request = dataspace_pb2.CreateDataspaceRequest(size=size)
    return stubs.dataspaces.CreateDataspace(request).dataspace.name


def free(stubs: Stubs, name: str) -> None:
    stubs.dataspaces.FreeDataspace(dataspace_pb2.FreeDataspaceRequest(name=name))


def open_session(stubs: Stubs) -> str:
    request = vm_session_pb2.CreateSessionRequest(engine="soft", label=LABEL)
    return stubs.vm.CreateSession(request).session.name


def attach(stubs: Stubs, session: str, dataspace: str, gpa: int = 0) -> None:
    stubs.vm.Attach(
        vm_session_pb2.AttachRequest(session=session, dataspace=dataspace, gpa=gpa, size=PAGE)
    )


def create_vcpu(stubs: Stubs, session: str) -> str:
    request = vm_session_pb2.CreateVcpuRequest(
        session=session, index=0, transport=vm_session_pb2.TRANSPORT_PAGE, page_abi=ABI
    )
    return stubs.vm.CreateVcpu(request).vcpu.name


def upgrade(stubs: Stubs, session: str) -> None:
    stubs.vm.UpgradeQuota(vm_session_pb2.UpgradeQuotaRequest(session=session, ram=PAGE))


def open_channel(core: RunningCore, stubs: Stubs) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel.connect(os.fspath(core.directory / "fds.sock"))
    channel.settimeout(10)
    channel.send(stubs.core.OpenFdChannel(core_pb2.OpenFdChannelRequest()).ticket.encode())
    assert channel.recv(100) == b"ok"
    return channel


def collect(channel: socket.socket, name: str) -> None:
    channel.send(name.encode())
    answer, fds, _, _ = socket.recv_fds(channel, 300, 1)
    assert answer == b"ok"
    os.close(*fds)


def events(stubs: Stubs, **only: Any) -> list[audit_pb2.Event]:
    found: list[audit_pb2.Event] = []
    after = 0
    while True:
        request = audit_pb2.ListEventsRequest(after_revision=after, page_size=7, **only)
        page = stubs.audit.ListEvents(request)
        found += page.events
        after = page.next_after_revision
        if not after:
            return found


def test_every_change_has_its_event(core: RunningCore, stubs: Stubs) -> None:
    began = datetime.now(UTC)
    with open_channel(core, stubs) as channel:
        memory = create(stubs, 2 * PAGE)
        session = open_session(stubs)
        vcpu = create_vcpu(stubs, session)
        collect(channel, vcpu)
        upgrade(stubs, session)
        attach(stubs, session, memory)
        attach(stubs, session, memory, 8 * PAGE)
        stubs.vm.Detach(vm_session_pb2.DetachRequest(session=session, gpa=0, size=PAGE))
        stubs.vm.DeleteSession(vm_session_pb2.DeleteSessionRequest(name=session))
        free(stubs, memory)
    told = events(stubs)
    client = told[1].subject
    assert client.startswith("clients/")
    assert [(event.kind, event.subject, event.label, event.cause) for event in told[1:]] == [
        ("opened", client, "", "connected"),
        ("created", memory, "", "CreateDataspace"),
        ("opened", session, LABEL, "CreateSession"),
        ("created", vcpu, LABEL, "CreateVcpu"),
        ("opened", vcpu, LABEL, "CreateVcpu"),
        ("handed_out", vcpu, LABEL, "fd channel"),
        ("upgraded", session, LABEL, "UpgradeQuota"),
        ("attached", memory, LABEL, "Attach"),
        ("attached", memory, LABEL, "Attach"),
        ("detached", memory, LABEL, "Detach"),
        ("detached", memory, LABEL, "session deleted"),
        ("closed", vcpu, LABEL, "session deleted"),
        ("freed", vcpu, LABEL, "session deleted"),
        ("closed", session, LABEL, "session deleted"),
        ("freed", memory, "", "freed by its owner"),
    ]
    me = core_pb2.ClientIdentity(uid=os.getuid(), gid=os.getgid(), pid=os.getpid())
    assert all(event.actor == me for event in told[1:])
    assert (told[0].kind, told[0].HasField("actor")) == ("started", False)
    assert [event.revision for event in told] == list(range(1, len(told) + 1))
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert {event.boot_id for event in told} == {boot}
    times = [event.time.ToNanoseconds() for event in told]
    assert began.timestamp() * 1e9 <= times[2]  # the first that this test asked for
    assert times == sorted(times)
    asked = json.loads(told[7].detail)
    assert asked == {"ram": PAGE, "capabilities": 0}
    assert json.loads(told[8].detail) == {
        "executable": True,
        "gpa": 0,
        "offset": 0,
        "session": session,
        "size": PAGE,
        "writable": True,
    }


def test_events_are_filtered(stubs: Stubs) -> None:
    first, second = create(stubs), create(stubs)
    free(stubs, first)
    assert [event.kind for event in events(stubs, subject=first)] == ["created", "freed"]
    created = events(stubs, kinds=["created", "held"])
    assert [event.subject for event in created] == [first, second]
    assert len(events(stubs, uid=os.getuid())) == 5  # all: core is this user's, too
    assert events(stubs, uid=os.getuid() + 1) == []
    at = created[1].time
    assert [event.kind for event in events(stubs, since=at)] == ["created", "freed"]
    assert [event.subject for event in events(stubs, until=at)][-1] == first


def list_events(**request: Any) -> Callable[[Stubs], object]:
    return lambda stubs: stubs.audit.ListEvents(audit_pb2.ListEventsRequest(**request))


def list_records(**request: Any) -> Callable[[Stubs], object]:
    return lambda stubs: stubs.audit.ListRecords(audit_pb2.ListRecordsRequest(**request))


def watch(stubs: Stubs, after: int = 0) -> Iterator[audit_pb2.WatchResponse]:
    return iter(stubs.audit.Watch(audit_pb2.WatchRequest(after_revision=after)))


@pytest.mark.parametrize(
    "ask",
    [
        list_events(kinds=["freed", "stolen"]),
        list_events(kinds=["freed"] * 100),
        list_events(after_revision=1 << 63),
        list_events(page_size=1001),
        list_events(since={"seconds": 1 << 62}),
        list_events(until={"nanos": -1}),
        list_records(at={"nanos": 10**9}),
        list_records(kind=9),
        lambda stubs: stubs.audit.GetHistory(audit_pb2.GetHistoryRequest(name="x", limit=1001)),
        lambda stubs: stubs.audit.GetTotals(audit_pb2.GetTotalsRequest(group_by=cast("Any", 9))),
        lambda stubs: next(watch(stubs, 1 << 63)),
        lambda stubs: next(watch(stubs, 1 << 40)),
    ],
)
def test_impossible_questions(stubs: Stubs, ask: Callable[[Stubs], object]) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        ask(stubs)
    assert reason_of(refused.value) == "INVALID_ARGUMENT"


def test_history_tells_a_life_in_parts(stubs: Stubs) -> None:
    memory = create(stubs)
    free(stubs, memory)
    whole = stubs.audit.GetHistory(audit_pb2.GetHistoryRequest(name=memory))
    assert ([event.kind for event in whole.events], whole.truncated) == (
        ["created", "freed"],
        False,
    )
    part = stubs.audit.GetHistory(audit_pb2.GetHistoryRequest(name=memory, limit=1))
    assert (list(part.events), part.truncated) == ([whole.events[0]], True)
    for name in ("", "dataspaces/none"):
        with pytest.raises(grpc.RpcError) as refused:
            stubs.audit.GetHistory(audit_pb2.GetHistoryRequest(name=name))
        assert reason_of(refused.value) == "NOT_FOUND"


def records(stubs: Stubs, **only: Any) -> list[str]:
    request = audit_pb2.ListRecordsRequest(**only)
    return [record.name for record in stubs.audit.ListRecords(request).records]


def test_records_are_filtered(stubs: Stubs) -> None:
    gone, attached, other = create(stubs), create(stubs), create(stubs)
    (born,) = events(stubs, subject=other)
    free(stubs, gone)
    session = open_session(stubs)
    vcpu = create_vcpu(stubs, session)
    attach(stubs, session, attached)
    assert records(stubs) == [gone, attached, other, vcpu]
    assert records(stubs, alive_only=True) == [attached, other, vcpu]
    assert records(stubs, session=session) == [attached, vcpu]
    assert records(stubs, kind=audit_pb2.DATASPACE_KIND_VCPU_PAGE) == [vcpu]
    assert records(stubs, uid=os.getuid() + 1) == []
    assert records(stubs, at=born.time) == [gone, attached, other]
    assert records(stubs, at=born.time, alive_only=True) == [attached, other]
    stubs.dataspaces.WriteDataspace(dataspace_pb2.WriteDataspaceRequest(name=other, data=b"x"))
    told = {
        record.name: record
        for record in stubs.audit.ListRecords(audit_pb2.ListRecordsRequest()).records
    }
    assert (told[other].committed, told[gone].committed) == (PAGE, 0)
    assert told[attached].attachments == [f"{session} 0x0..0xfff rw"]
    assert told[gone].state == audit_pb2.DATASPACE_STATE_FREED


def test_totals_by_group(stubs: Stubs) -> None:
    memory = create(stubs, 3 * PAGE)
    session = open_session(stubs)
    vcpu = create_vcpu(stubs, session)
    attach(stubs, session, memory)
    stubs.dataspaces.WriteDataspace(dataspace_pb2.WriteDataspaceRequest(name=memory, data=b"x"))
    (page,) = (
        record
        for record in stubs.audit.ListRecords(audit_pb2.ListRecordsRequest()).records
        if record.name == vcpu
    )
    both = (2, 3 * PAGE + page.size)
    me = f"{os.getuid()}:{os.getgid()}:{os.getpid()}"
    expected = {
        audit_pb2.GROUPING_CLIENT: {me: both},
        audit_pb2.GROUPING_UID: {str(os.getuid()): both},
        audit_pb2.GROUPING_SESSION: {session: both},
        audit_pb2.GROUPING_KIND: {"ram": (1, 3 * PAGE), "vcpu_page": (1, page.size)},
    }
    for grouping, groups in expected.items():
        told = stubs.audit.GetTotals(audit_pb2.GetTotalsRequest(group_by=grouping))
        assert {each.group: (each.live, each.live_bytes) for each in told.groups} == groups
        committed = sum(each.committed_bytes for each in told.groups)
        assert committed == PAGE + page.committed
        assert {each.HasField("ram") for each in told.groups} == {
            grouping != audit_pb2.GROUPING_KIND
        }
        assert (told.created, told.freed, told.live) == (2, 0, 2)
    assert stubs.vm.GetSession(vm_session_pb2.GetSessionRequest(name=session)).session.ram == (
        stubs.audit.GetTotals(audit_pb2.GetTotalsRequest(group_by=audit_pb2.GROUPING_SESSION))
        .groups[0]
        .ram
    )


def test_a_watch_begins_with_what_lives_and_goes_on(stubs: Stubs) -> None:
    memory = create(stubs)
    free(stubs, create(stubs))
    watching = watch(stubs)
    snapshot = next(watching).snapshot
    assert [record.name for record in snapshot.records] == [memory]
    assert not snapshot.more
    free(stubs, memory)
    event = next(watching).event
    assert (event.kind, event.subject) == ("freed", memory)
    assert event.revision == snapshot.revision + 1
    assert event == events(stubs)[-1]
    cancel(watching)


def test_a_watch_goes_on_after_any_event(stubs: Stubs) -> None:
    memory = create(stubs)
    free(stubs, memory)
    past = events(stubs)
    watching = watch(stubs, past[0].revision)
    assert [next(watching).event for _ in past[1:]] == past[1:]
    new = create(stubs)
    assert next(watching).event.subject == new
    cancel(watching)


def test_watches_of_a_client_are_bounded(stubs: Stubs) -> None:
    watches = [watch(stubs) for _ in range(4)]
    for watching in watches:
        next(watching)
    with pytest.raises(grpc.RpcError) as refused:
        next(watch(stubs))
    assert reason_of(refused.value) == "OUT_OF_CAPS"
    cancel(watches[0])
    eventually(lambda: can_watch(stubs))
    for watching in watches[1:]:
        cancel(watching)


def can_watch(stubs: Stubs) -> bool:
    watching = watch(stubs)
    try:
        next(watching)
    except grpc.RpcError:
        return False
    finally:
        cancel(watching)
    return True


def test_what_retention_removed_is_told(serve: Serve) -> None:
    _, stubs = serve("--audit-file-events", "5", "--audit-keep-files", "2")
    kept = create(stubs)
    for _ in range(10):
        free(stubs, create(stubs))
    for call in (
        list_events(after_revision=1),
        lambda stubs: next(watch(stubs, 1)),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            call(stubs)
        info = error_info(refused.value)
        assert info.reason == "COMPACTED"
        assert info.metadata["asked"] == "2"
        oldest = int(info.metadata["oldest"])
        assert oldest > 2
    assert events(stubs)[0].revision == oldest
    assert stubs.totals().created == 11
    history = stubs.audit.GetHistory(audit_pb2.GetHistoryRequest(name=kept))
    assert (list(history.events), history.compacted) == ([], True)
    free(stubs, kept)
    history = stubs.audit.GetHistory(audit_pb2.GetHistoryRequest(name=kept))
    assert ([event.kind for event in history.events], history.compacted) == (["freed"], True)
    kept = create(stubs)
    history = stubs.audit.GetHistory(audit_pb2.GetHistoryRequest(name=kept))
    assert ([event.kind for event in history.events], history.compacted) == (["created"], False)
    watching = watch(stubs)
    assert [record.name for record in next(watching).snapshot.records] == [kept]
    cancel(watching)


def test_what_lived_when_core_was_killed_is_lost(serve: Serve, audit: Path) -> None:
    core, stubs = serve()
    gone, memory = create(stubs), create(stubs)
    free(stubs, gone)
    session = open_session(stubs)
    vcpu = create_vcpu(stubs, session)
    attach(stubs, session, memory)
    before = events(stubs)
    client = next(event.subject for event in before if event.subject.startswith("clients/"))
    core.kill()

    second, after_crash = serve()
    new = create(after_crash)
    told = events(after_crash)
    assert told[: len(before)] == before
    assert [event.revision for event in told] == list(range(1, len(told) + 1))
    lost = [event for event in told if event.kind == "lost"]
    assert [(event.subject, json.loads(event.detail)["kind"]) for event in lost] == [
        (before[0].subject, "core"),
        (client, "client"),
        (memory, "ram"),
        (session, "session"),
        (vcpu, "vcpu_page"),
        (vcpu, "vcpu"),
    ]
    assert {event.cause for event in lost} == {"lost at crash"}
    assert told[len(before) + len(lost)].kind == "started"
    digits = {name.partition("/")[2][:4] for name in (memory, new)}
    assert len(digits) == 2
    history = after_crash.audit.GetHistory(audit_pb2.GetHistoryRequest(name=memory))
    assert [event.kind for event in history.events] == ["created", "attached", "lost"]
    listed = after_crash.audit.ListRecords(audit_pb2.ListRecordsRequest()).records
    freed = audit_pb2.DATASPACE_STATE_FREED
    assert [(record.name, record.state, record.cause) for record in listed] == [
        (gone, freed, "freed by its owner"),
        (memory, freed, "lost at crash"),
        (vcpu, freed, "lost at crash"),
        (new, audit_pb2.DATASPACE_STATE_ALIVE, ""),
    ]
    assert (listed[1].mappings, list(listed[1].attachments)) == (1, [])
    totals = after_crash.totals()
    assert (totals.created, totals.freed, totals.live) == (4, 3, 1)

    second.stop()
    checked = verify_chain(audit)
    assert checked.discrepancies == []
    assert Query(audit).events(checked.events - 1)[0].event.kind == "stopped"
    _, third = serve()
    assert [event.kind for event in events(third)].count("lost") == len(lost)


Change = Callable[[Stubs, str, str, socket.socket], object]
CHANGES: dict[str, Change] = {
    "created": lambda stubs, _session, _memory, _channel: create(stubs),
    "freed": lambda stubs, _session, memory, _channel: free(stubs, memory),
    "opened": lambda stubs, _session, _memory, _channel: open_session(stubs),
    "upgraded": lambda stubs, session, _memory, _channel: upgrade(stubs, session),
    "attached": lambda stubs, session, memory, _channel: attach(stubs, session, memory),
    "handed_out": lambda _stubs, _session, memory, channel: collect(channel, memory),
    "closed": lambda stubs, session, _memory, _channel: stubs.vm.DeleteSession(
        vm_session_pb2.DeleteSessionRequest(name=session)
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_is_on_disk_before_its_answer(serve: Serve, audit: Path, kind: str) -> None:
    core, stubs = serve()
    memory, session = create(stubs), open_session(stubs)
    with open_channel(core, stubs) as channel:
        before = Query(audit).last_revision()
        CHANGES[kind](stubs, session, memory, channel)
        core.kill()
    (recorded,) = Query(audit).events(before)
    assert recorded.event.kind == kind


def limit_files(core: RunningCore, size: int) -> None:
    """A disk that is full, to core: no file may be written beyond `size` (setrlimit(2))."""
    _, hard = resource.prlimit(core.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(core.process.pid, resource.RLIMIT_FSIZE, (size, hard))


def test_a_log_that_cannot_be_written_stops_what_is_made_not_what_is_freed(
    core: RunningCore, stubs: Stubs
) -> None:
    memory, other = create(stubs), create(stubs)
    with open_channel(core, stubs) as channel:
        limit_files(core, 0)
        refusals: list[Callable[[], object]] = [
            lambda: free(stubs, memory),
            lambda: create(stubs),
            lambda: open_session(stubs),
        ]
        for call in refusals:
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert reason_of(refused.value) == "AUDIT_FAILURE"
        with pytest.raises(grpc.RpcError) as refused:
            free(stubs, memory)
        assert reason_of(refused.value) == "NOT_FOUND"
        channel.send(other.encode())
        assert channel.recv(300).startswith(b"error AUDIT_FAILURE")
        assert records(stubs, alive_only=True) == [other]
        assert stubs.totals().live == 1
        limit_files(core, resource.RLIM_INFINITY)
        eventually(lambda: [event.kind for event in events(stubs, subject=memory)][-1] == "freed")
        collect(channel, other)
    assert create(stubs) in records(stubs)
    assert verify_chain(core.audit).discrepancies == []


def test_a_call_that_the_log_failed_under_is_told_what_became_of_it(
    core: RunningCore, stubs: Stubs
) -> None:
    request = dataspace_pb2.CreateDataspaceRequest(size=PAGE, request_id="under way")
    limit_files(core, PAGE)  # the log has more already
    told = []
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as refused:
            stubs.dataspaces.CreateDataspace(request)
        told.append(error_info(refused.value))
    assert {info.reason for info in told} == {"AUDIT_FAILURE"}
    assert [info.metadata.get("done") for info in told] == ["yes", None]
    (made,) = records(stubs, alive_only=True)
    with pytest.raises(grpc.RpcError) as refused:
        free(stubs, made)
    assert error_info(refused.value).metadata["done"] == "yes"
    assert records(stubs, alive_only=True) == []
    limit_files(core, resource.RLIM_INFINITY)
    eventually(
        lambda: [event.kind for event in events(stubs, subject=made)] == ["created", "freed"]
    )
    assert stubs.dataspaces.CreateDataspace(request).dataspace.name == made
