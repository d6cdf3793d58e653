"""What the log lines of a call are about: the caller's own objects, and nothing that he made up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.contextvars import get_contextvars
from vmsession.v1 import audit_pb2, dataspace_pb2
from vmsession.v1 import vm_session_pb2 as pb

from core_service.rpc import vcpu_calls
from core_service.rpc.log_context import objects_of
from core_service.rpc.vm_session_servicer import VmSessionServicer

CLIENT: Any = SimpleNamespace(sessions={"sessions/7k": SimpleNamespace(vcpus={0: None, 12: None})})
SESSION = {"session": "sessions/7k"}
CALL: Any = SimpleNamespace(peer=lambda: "")
CORE: Any = SimpleNamespace(
    clients=SimpleNamespace(of=lambda peer: CLIENT),
    vcpu_of=lambda client, name: (SimpleNamespace(name="sessions/7k"), SimpleNamespace(index=12)),
)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (pb.GetSessionRequest(name="sessions/7k"), SESSION),
        (pb.ListVcpusRequest(session="sessions/7k"), SESSION),
        (pb.RunRequest(vcpu="sessions/7k/vcpus/12"), {**SESSION, "vcpu": "12"}),
        (pb.RunRequest(vcpu="sessions/7k/vcpus/3"), SESSION),
        (pb.RunRequest(vcpu="sessions/7k/vcpus/٣"), SESSION),
        (pb.RunRequest(vcpu="sessions/7k/vcpus/" + "0" * 5000), SESSION),
        (pb.RunRequest(vcpu="sessions/7k/vcpus/-1"), SESSION),
        (pb.GetSessionRequest(name="sessions/another"), {}),
        (pb.GetSessionRequest(name="sessions/7k\nuid=0"), {}),
        (pb.AttachRequest(session="sessions/7k", dataspace="dataspaces/1"), SESSION),
        (dataspace_pb2.FreeDataspaceRequest(name="dataspaces/1"), {}),
        (audit_pb2.GetTotalsRequest(), {}),
        (iter(()), {}),
    ],
)
def test_what_a_request_is_about(request_: object, expected: dict[str, str]) -> None:
    assert objects_of(CLIENT, request_) == expected


async def test_what_a_stream_of_exits_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, object] = {}

    async def exits(*_: object) -> AsyncIterator[None]:
        told.update(get_contextvars())
        yield None

    async def requests() -> AsyncIterator[pb.HandleExitsRequest]:
        yield pb.HandleExitsRequest(open="sessions/7k/vcpus/12")

    servicer = VmSessionServicer(CORE)
    monkeypatch.setattr(vcpu_calls, "handle_exits", exits)
    async for _ in servicer.HandleExits(requests(), CALL):
        pass
    assert told == {**SESSION, "vcpu": "12"}
