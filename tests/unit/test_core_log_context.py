"""What the log lines of a call are about: the caller's own objects, and nothing that he made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vmsession.v1 import audit_pb2, dataspace_pb2
from vmsession.v1 import vm_session_pb2 as pb

from core_service.rpc.log_context import objects_of

CLIENT: Any = SimpleNamespace(sessions={"sessions/7k": SimpleNamespace(vcpus={0: None, 12: None})})
SESSION = {"session": "sessions/7k"}


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
