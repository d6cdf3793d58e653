"""Lists in pages, while what they list goes away."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from vmsession.v1 import audit_pb2, dataspace_pb2, vm_session_pb2

from tests.integration.refusals import reason_of
from tests.integration.running_core import Stubs

PAGE = 4096


def create(stubs: Stubs, count: int) -> list[str]:
    request = dataspace_pb2.CreateDataspaceRequest(size=PAGE)
    return [stubs.dataspaces.CreateDataspace(request).dataspace.name for _ in range(count)]


def free(stubs: Stubs, name: str) -> None:
    stubs.dataspaces.FreeDataspace(dataspace_pb2.FreeDataspaceRequest(name=name))


def dataspace_pages(stubs: Stubs, size: int) -> Iterator[list[str]]:
    token = ""
    while True:
        response = stubs.dataspaces.ListDataspaces(
            dataspace_pb2.ListDataspacesRequest(page_size=size, page_token=token)
        )
        yield [dataspace.name for dataspace in response.dataspaces]
        token = response.next_page_token
        if not token:
            return


def test_a_list_goes_on_where_it_was_when_entries_are_freed(stubs: Stubs) -> None:
    names = create(stubs, 40)  # beyond one digit of the names' numbers
    seen = []
    for chosen in dataspace_pages(stubs, 3):
        seen += chosen
        for name in chosen:
            free(stubs, name)
    assert seen == names


def test_records_are_listed_in_pages_in_the_order_of_creation(stubs: Stubs) -> None:
    names = create(stubs, 7)
    for name in names[::2]:
        free(stubs, name)
    for alive_only, expected in ((False, names), (True, names[1::2])):
        seen: list[str] = []
        token = ""
        while True:
            response = stubs.audit.ListRecords(
                audit_pb2.ListRecordsRequest(page_size=2, page_token=token, alive_only=alive_only)
            )
            seen += [record.name for record in response.records]
            token = response.next_page_token
            if not token:
                break
        assert seen == expected


@pytest.mark.parametrize("token", ["x", "-1", "1.5", "²", "9" * 30, "dataspaces/none", "\x00"])
def test_tokens_that_no_response_gave(stubs: Stubs, token: str) -> None:
    for call in (
        lambda: stubs.audit.ListRecords(audit_pb2.ListRecordsRequest(page_token=token)),
        lambda: stubs.vm.ListSessions(vm_session_pb2.ListSessionsRequest(page_token=token)),
        lambda: stubs.dataspaces.ListDataspaces(
            dataspace_pb2.ListDataspacesRequest(page_token=token)
        ),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert reason_of(refused.value) == "INVALID_ARGUMENT"


def test_health_can_be_watched(stubs: Stubs) -> None:
    health = health_pb2_grpc.HealthStub(stubs.channel)
    watching = health.Watch(health_pb2.HealthCheckRequest(), timeout=10)  # type: ignore[attr-defined] # not in its stubs
    assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
    watching.cancel()
