"""Every refusal is typed: its reason, its code, and the value and the limit."""

from __future__ import annotations

import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from vmsession.v1 import audit_pb2, dataspace_pb2, vcpu_pb2, vm_session_pb2

from tests.integration.refusals import error_info
from tests.integration.running_core import RunningCore, Stubs

PAGE = 4096


@pytest.fixture
def session(stubs: Stubs) -> str:
    """A session on the engine that works everywhere."""
    return stubs.vm.CreateSession(vm_session_pb2.CreateSessionRequest(engine="soft")).session.name


@pytest.fixture
def dataspace(stubs: Stubs) -> str:
    """Four pages."""
    return create(stubs, 4 * PAGE)


def create(stubs: Stubs, size: int, request_id: str = "") -> str:
    response = stubs.dataspaces.CreateDataspace(
        dataspace_pb2.CreateDataspaceRequest(size=size, request_id=request_id)
    )
    return response.dataspace.name


def refused(call: Callable[[], Any]) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return error_info(caught.value)


def attach(stubs: Stubs, session: str, dataspace: str, **fields: Any) -> vm_session_pb2.Attachment:
    request = vm_session_pb2.AttachRequest(session=session, dataspace=dataspace, **fields)
    return stubs.vm.Attach(request).attachment


@pytest.mark.parametrize("size", [0, (1 << 46) + 1, 1 << 63])
def test_absurd_sizes(stubs: Stubs, size: int) -> None:
    info = refused(lambda: create(stubs, size))
    assert info.reason == "INVALID_ARGUMENT"
    assert info.metadata["field"] == "size"
    assert info.metadata["value"] == str(size)


def test_out_of_ram_names_asked_used_and_limit(stubs: Stubs) -> None:
    create(stubs, 5 * PAGE)
    info = refused(lambda: create(stubs, 1 << 40))
    assert info.reason == "OUT_OF_RAM"
    assert info.metadata["asked"] == str(1 << 40)
    assert info.metadata["used"] == str(5 * PAGE)
    assert info.metadata["limit"] == str(16 << 30)
    assert stubs.totals().live == 1


def test_unknown_engine(stubs: Stubs) -> None:
    info = refused(
        lambda: stubs.vm.CreateSession(vm_session_pb2.CreateSessionRequest(engine="xen"))
    )
    assert info.reason == "ENGINE_UNAVAILABLE"
    assert info.metadata["engine"] == "xen"
    assert "known are kvm, soft" in info.metadata["why"]


@pytest.mark.parametrize("label", ["x" * 65, "a\nb", "\x1b[2J"])
def test_labels_that_garble_a_terminal(stubs: Stubs, label: str) -> None:
    info = refused(lambda: stubs.vm.CreateSession(vm_session_pb2.CreateSessionRequest(label=label)))
    assert (info.reason, info.metadata["field"]) == ("INVALID_ARGUMENT", "label")


@pytest.mark.parametrize("name", ["", "sessions/", "sessions/1", "x" * 10_000, "dataspaces/1"])
def test_names_of_nothing(stubs: Stubs, name: str) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: stubs.vm.GetSession(vm_session_pb2.GetSessionRequest(name=name)),
        lambda: stubs.vm.DeleteSession(vm_session_pb2.DeleteSessionRequest(name=name)),
        lambda: stubs.vm.UpgradeQuota(vm_session_pb2.UpgradeQuotaRequest(session=name)),
        lambda: stubs.vm.ListVcpus(vm_session_pb2.ListVcpusRequest(session=name)),
        lambda: stubs.vm.ListAttachments(vm_session_pb2.ListAttachmentsRequest(session=name)),
        lambda: stubs.vm.Detach(vm_session_pb2.DetachRequest(session=name, size=PAGE)),
        lambda: attach(stubs, name, name),
        lambda: stubs.vm.Run(vm_session_pb2.RunRequest(vcpu=name)),
        lambda: stubs.vm.Pause(vm_session_pb2.PauseRequest(vcpu=name)),
        lambda: stubs.vm.RequestWindow(vm_session_pb2.RequestWindowRequest(vcpu=name)),
        lambda: stubs.vm.GetVcpuState(vm_session_pb2.GetVcpuStateRequest(vcpu=name)),
        lambda: stubs.vm.UpdateVcpuState(vm_session_pb2.UpdateVcpuStateRequest(vcpu=name)),
        lambda: stubs.vm.GetVcpuCpuid(vm_session_pb2.GetVcpuCpuidRequest(vcpu=name)),
        lambda: stubs.vm.SetVcpuCpuid(vm_session_pb2.SetVcpuCpuidRequest(vcpu=name)),
        lambda: stubs.vm.SetMsrFilter(vm_session_pb2.SetMsrFilterRequest(session=name)),
        lambda: list(
            stubs.vm.HandleExits(iter([vm_session_pb2.HandleExitsRequest(open=name)]), timeout=9)
        ),
        lambda: stubs.dataspaces.GetDataspace(dataspace_pb2.GetDataspaceRequest(name=name)),
        lambda: stubs.dataspaces.FreeDataspace(dataspace_pb2.FreeDataspaceRequest(name=name)),
        lambda: stubs.dataspaces.ReadDataspace(dataspace_pb2.ReadDataspaceRequest(name=name)),
        lambda: stubs.dataspaces.WriteDataspace(dataspace_pb2.WriteDataspaceRequest(name=name)),
    ]
    assert [refused(call).reason for call in calls] == ["NOT_FOUND"] * len(calls)


@pytest.mark.parametrize("vcpu", ["/vcpus/0", "/vcpus/-1", "/vcpus/00", "/vcpus/9999", "/vcpus/"])
def test_vcpus_that_do_not_exist(stubs: Stubs, session: str, vcpu: str) -> None:
    info = refused(lambda: stubs.vm.Run(vm_session_pb2.RunRequest(vcpu=session + vcpu)))
    assert info.reason == "NOT_FOUND"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"gpa": 1}, "INVALID_RANGE"),
        ({"gpa": (1 << 64) - PAGE, "size": PAGE}, "INVALID_RANGE"),
        ({"gpa": 1 << 52}, "INVALID_RANGE"),
        ({"gpa": 0, "offset": 1}, "INVALID_DATASPACE"),
        ({"gpa": 0, "offset": 4 * PAGE}, "INVALID_DATASPACE"),
        ({"gpa": 0, "size": 5 * PAGE}, "INVALID_DATASPACE"),
        ({"gpa": 0, "offset": PAGE, "size": 4 * PAGE}, "INVALID_DATASPACE"),
        ({"gpa": 0, "size": 1}, "INVALID_DATASPACE"),
        ({"gpa": 0, "offset": (1 << 64) - PAGE, "size": 2 * PAGE}, "INVALID_DATASPACE"),
    ],
)
def test_attachments_that_cannot_be(
    stubs: Stubs, session: str, dataspace: str, fields: dict[str, int], reason: str
) -> None:
    assert refused(lambda: attach(stubs, session, dataspace, **fields)).reason == reason
    attachments = vm_session_pb2.ListAttachmentsRequest(session=session)
    assert not stubs.vm.ListAttachments(attachments).attachments


def test_a_conflict_names_the_range_in_the_way(stubs: Stubs, session: str, dataspace: str) -> None:
    attach(stubs, session, dataspace, gpa=0x10000)
    assert attach(stubs, session, dataspace, gpa=0x10000).size == 4 * PAGE
    info = refused(lambda: attach(stubs, session, dataspace, gpa=0x11000, size=PAGE))
    assert info.reason == "REGION_CONFLICT"
    assert info.metadata["conflict_gpa"] == str(0x10000)
    assert info.metadata["conflict_size"] == str(4 * PAGE)


def test_a_partial_detach_splits(stubs: Stubs, session: str, dataspace: str) -> None:
    attach(stubs, session, dataspace, gpa=0x10000)
    detached = stubs.vm.Detach(
        vm_session_pb2.DetachRequest(session=session, gpa=0x11000, size=2 * PAGE)
    ).detached
    assert [(piece.gpa, piece.size, piece.offset) for piece in detached] == [
        (0x11000, 2 * PAGE, PAGE)
    ]
    left = stubs.vm.ListAttachments(vm_session_pb2.ListAttachmentsRequest(session=session))
    assert [(piece.gpa, piece.size, piece.offset) for piece in left.attachments] == [
        (0x10000, PAGE, 0),
        (0x13000, PAGE, 3 * PAGE),
    ]
    capabilities = stubs.vm.GetSession(vm_session_pb2.GetSessionRequest(name=session))
    assert capabilities.session.capabilities.used == 2
    assert capabilities.session.attached_bytes == 2 * PAGE


def test_session_quota(stubs: Stubs, dataspace: str) -> None:
    session = stubs.vm.CreateSession(
        vm_session_pb2.CreateSessionRequest(engine="soft", capability_quota=1)
    ).session.name
    attach(stubs, session, dataspace, gpa=0, size=PAGE)
    info = refused(lambda: attach(stubs, session, dataspace, gpa=PAGE, size=PAGE))
    assert (info.reason, info.metadata["used"], info.metadata["limit"]) == ("OUT_OF_CAPS", "1", "1")
    upgraded = stubs.vm.UpgradeQuota(
        vm_session_pb2.UpgradeQuotaRequest(session=session, capabilities=1)
    )
    assert (upgraded.capabilities.used, upgraded.capabilities.limit) == (1, 2)
    attach(stubs, session, dataspace, gpa=PAGE, size=PAGE)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"transport": vm_session_pb2.TRANSPORT_UNSPECIFIED}, "INVALID_ARGUMENT"),
        ({"transport": 77}, "INVALID_ARGUMENT"),
        ({"transport": vm_session_pb2.TRANSPORT_PAGE, "page_abi": 1}, "INVALID_ARGUMENT"),
        ({"transport": vm_session_pb2.TRANSPORT_STREAM, "index": 64}, "ENGINE_LIMIT"),
        ({"transport": vm_session_pb2.TRANSPORT_STREAM, "index": 0xFFFFFFFF}, "ENGINE_LIMIT"),
    ],
)
def test_vcpus_that_cannot_be(
    stubs: Stubs, session: str, fields: dict[str, Any], reason: str
) -> None:
    request = vm_session_pb2.CreateVcpuRequest(session=session, **fields)
    assert refused(lambda: stubs.vm.CreateVcpu(request)).reason == reason


def test_a_vcpu_exists_once(stubs: Stubs, session: str) -> None:
    request = vm_session_pb2.CreateVcpuRequest(
        session=session, index=3, transport=vm_session_pb2.TRANSPORT_STREAM
    )
    stubs.vm.CreateVcpu(request)
    assert refused(lambda: stubs.vm.CreateVcpu(request)).reason == "ALREADY_EXISTS"
    vcpus = stubs.vm.ListVcpus(vm_session_pb2.ListVcpusRequest(session=session)).vcpus
    assert [vcpu.index for vcpu in vcpus] == [3]


@pytest.mark.parametrize(
    "reply",
    [
        vcpu_pb2.Reply(data=b"x" * 257),
        vcpu_pb2.Reply(injection=vcpu_pb2.Injection(vector=1)),
        vcpu_pb2.Reply(
            injection=vcpu_pb2.Injection(type=vcpu_pb2.INJECTION_TYPE_INTERRUPT, vector=256)
        ),
        vcpu_pb2.Reply(wanted=["rax", "ray"]),
        vcpu_pb2.Reply(state=vcpu_pb2.VcpuState(cs=vcpu_pb2.Segment(selector=0x10000))),
        vcpu_pb2.Reply(
            breakpoints=vcpu_pb2.Breakpoints(breakpoints=[vcpu_pb2.Breakpoint(address=1)])
        ),
    ],
)
def test_malformed_replies(stubs: Stubs, session: str, reply: vcpu_pb2.Reply) -> None:
    vcpu = stubs.vm.CreateVcpu(
        vm_session_pb2.CreateVcpuRequest(session=session, transport=vm_session_pb2.TRANSPORT_STREAM)
    ).vcpu.name
    info = refused(lambda: stubs.vm.Run(vm_session_pb2.RunRequest(vcpu=vcpu, reply=reply)))
    assert info.reason == "INVALID_ARGUMENT"


def test_the_first_message_of_a_stream_opens_it(stubs: Stubs) -> None:
    for first in ([], [vm_session_pb2.HandleExitsRequest(reply=vcpu_pb2.Reply())]):
        exits = stubs.vm.HandleExits(iter(first), timeout=9)
        info = refused(partial(list, exits))
        assert info.reason == "INVALID_ARGUMENT"


@pytest.mark.parametrize(("offset", "size"), [(4 * PAGE, 1), (0, 4 * PAGE + 1), ((1 << 64) - 1, 1)])
def test_reads_and_writes_beyond_the_end(
    stubs: Stubs, dataspace: str, offset: int, size: int
) -> None:
    reads = dataspace_pb2.ReadDataspaceRequest(name=dataspace, offset=offset, size=size)
    writes = dataspace_pb2.WriteDataspaceRequest(name=dataspace, offset=offset, data=bytes(size))
    assert refused(lambda: stubs.dataspaces.ReadDataspace(reads)).reason == "OUT_OF_RANGE"
    assert refused(lambda: stubs.dataspaces.WriteDataspace(writes)).reason == "OUT_OF_RANGE"


def test_transfers_are_bounded(stubs: Stubs) -> None:
    large = create(stubs, 4 << 20)
    reads = dataspace_pb2.ReadDataspaceRequest(name=large, size=(1 << 20) + 1)
    assert refused(lambda: stubs.dataspaces.ReadDataspace(reads)).reason == "INVALID_ARGUMENT"


def test_a_request_id_gives_the_first_answer_again(stubs: Stubs) -> None:
    first = create(stubs, PAGE, "once")
    assert create(stubs, PAGE, "once") == first
    assert refused(lambda: create(stubs, 2 * PAGE, "once")).reason == "REQUEST_ID_REUSED"
    assert refused(lambda: create(stubs, PAGE, "x" * 65)).reason == "INVALID_ARGUMENT"
    assert stubs.totals().live == 1


def test_a_refused_mutation_may_be_tried_again(stubs: Stubs) -> None:
    assert refused(lambda: create(stubs, 1 << 40, "again")).reason == "OUT_OF_RAM"
    assert refused(lambda: create(stubs, 1 << 40, "again")).reason == "OUT_OF_RAM"
    create(stubs, PAGE, "again")


def test_pages_of_lists(stubs: Stubs) -> None:
    names = [create(stubs, PAGE) for _ in range(5)]
    seen = []
    token = ""
    while True:
        response = stubs.dataspaces.ListDataspaces(
            dataspace_pb2.ListDataspacesRequest(page_size=2, page_token=token)
        )
        seen += [dataspace.name for dataspace in response.dataspaces]
        token = response.next_page_token
        if not token:
            break
    assert seen == names
    listing = dataspace_pb2.ListDataspacesRequest(page_token="dataspaces/none")
    assert refused(lambda: stubs.dataspaces.ListDataspaces(listing)).reason == "INVALID_ARGUMENT"
    records = audit_pb2.ListRecordsRequest(page_size=1001)
    assert refused(lambda: stubs.audit.ListRecords(records)).reason == "INVALID_ARGUMENT"


def test_the_inner_socket_is_out_of_reach(core: RunningCore) -> None:
    """Whoever reached it could choose its own name there."""
    sockets = Path("/proc/net/unix").read_text().splitlines()
    paths = {Path(line.split()[-1]) for line in sockets if f"{core.directory}/" in line}
    inner = {path.parent for path in paths} - {core.directory}
    assert len(inner) == 1
    assert {stat.S_IMODE(directory.stat().st_mode) for directory in inner} == {0o700}
