"""What listens at the socket may not be a core, or not ours: every answer is a typed error."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from vmsession.v1.core_pb2 import GetInfoRequest, GetInfoResponse
from vmsession.v1.core_pb2_grpc import CoreServiceStub

from vmm_client.connection import connect
from vmm_client.errors import Closed, CoreUnavailable, IncompatibleCore, Refused
from vmm_client.rpc import Rpc

Answer = GetInfoResponse | Status | grpc.StatusCode | bytes  # bytes: of a status


def get_info(answer: Answer) -> grpc.GenericRpcHandler[GetInfoRequest, GetInfoResponse]:
    """CoreService with GetInfo alone, which answers as it is told."""

    def reply(_: GetInfoRequest, context: grpc.ServicerContext) -> GetInfoResponse:
        if isinstance(answer, Status):
            context.abort_with_status(rpc_status.to_status(answer))
        if isinstance(answer, grpc.StatusCode):
            context.abort(answer, "in words")
        if isinstance(answer, bytes):
            context.set_trailing_metadata((("grpc-status-details-bin", answer),))
            context.abort(grpc.StatusCode.INTERNAL, "in words")
        return answer

    method = grpc.unary_unary_rpc_method_handler(
        reply, GetInfoRequest.FromString, GetInfoResponse.SerializeToString
    )
    return grpc.method_handlers_generic_handler("vmsession.v1.CoreService", {"GetInfo": method})


@contextmanager
def listening(path: Path, *answers: Answer) -> Iterator[None]:
    """A gRPC server that is no core."""
    server = grpc.server(ThreadPoolExecutor(1), [get_info(answer) for answer in answers])
    server.add_insecure_port(f"unix://{path}")
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


def refusal(domain: str) -> Status:
    info = ErrorInfo(reason="OUT_OF_RAM", domain=domain, metadata={"asked": "5", "limit": "4"})
    detail = Any()
    detail.Pack(info)
    return Status(code=8, message="5 bytes asked of 4", details=[detail])


def test_a_refusal_has_reason_numbers_and_code(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listening(path, refusal("vmsession.v1")), pytest.raises(Refused) as caught:
        connect(str(path))
    error = caught.value
    assert (error.reason, error.code) == ("OUT_OF_RAM", "RESOURCE_EXHAUSTED")
    assert error.metadata == {"asked": "5", "limit": "4"}
    assert str(error) == "OUT_OF_RAM: 5 bytes asked of 4"
    assert "quota" in error.hint


def test_another_service_s_refusal_is_none_of_core(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with (
        listening(path, refusal("other.v1")),
        pytest.raises(CoreUnavailable, match="RESOURCE_EXHAUSTED: 5 bytes asked of 4"),
    ):
        connect(str(path))


def test_a_status_without_details_is_told_in_words(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with (
        listening(path, grpc.StatusCode.INTERNAL),
        pytest.raises(CoreUnavailable, match="INTERNAL: in words"),
    ):
        connect(str(path))


def test_details_that_are_garbage_or_of_another_status_are_told_in_words(tmp_path: Path) -> None:
    """As a call that is cancelled just when core refuses it has them."""
    garbled = {"another": Status(code=5).SerializeToString(), "garbage": b"\xff"}
    for name, details in garbled.items():
        path = tmp_path / name
        with listening(path, details), pytest.raises(CoreUnavailable, match="INTERNAL: in words"):
            connect(str(path))


def test_a_core_of_another_page_abi_is_incompatible(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with (
        listening(path, GetInfoResponse(page_abi=99)),
        pytest.raises(IncompatibleCore, match="page of this core is 99, this library speaks 2"),
    ):
        connect(str(path))


def test_a_server_without_our_service_is_incompatible(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listening(path), pytest.raises(IncompatibleCore, match="without this method"):
        connect(str(path))


@contextmanager
def accepting(path: Path, answer: bytes) -> Iterator[None]:
    """A socket where something else listens: it takes connections, says `answer`, and waits."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        taken = []

        def accept() -> None:
            while True:
                try:
                    taken.append(listener.accept()[0])
                except OSError:
                    return
                with suppress(OSError):  # some only look whether anybody listens
                    taken[-1].send(answer, socket.MSG_NOSIGNAL)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            for peer in taken:
                peer.close()


@pytest.mark.parametrize("answer", [b"", b"220 mail.example ESMTP\r\n"])
def test_something_else_at_the_socket_is_no_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr("vmm_client.connection.GREETING_SECONDS", 0.3)
    with accepting(tmp_path / "s", answer), pytest.raises(CoreUnavailable) as caught:
        connect(str(tmp_path / "s"))
    assert caught.value.path == str(tmp_path / "s")


def test_a_closed_connection_says_so(tmp_path: Path) -> None:
    rpc = Rpc(str(tmp_path / "s"))
    stub = CoreServiceStub(rpc.channel)
    rpc.close()
    rpc.close()
    with pytest.raises(Closed, match="is closed"):
        rpc.call(stub.GetInfo, GetInfoRequest())
