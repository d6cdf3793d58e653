"""How a relay ends: whatever core does, who waits at the page is told by a typed error."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import pytest
from vmsession.v1.vm_session_pb2 import HandleExitsRequest, HandleExitsResponse
from vmsession.v1.vm_session_pb2_grpc import VmSessionServiceStub

from vmm_client.engine_side import EngineSide
from vmm_client.errors import Closed, CoreUnavailable, Refused, SessionEnded, VmsessionError
from vmm_client.relay import Relay, StreamPage
from vmm_client.rpc import Rpc

NAME = "sessions/1/vcpus/0"
LIMIT_SECONDS = 5.0


class Call:
    """A HandleExits stream without exits; takes requests on a thread of its own, as gRPC does."""

    def __init__(self, requests: Iterable[HandleExitsRequest]) -> None:
        self.ended = threading.Event()
        self._thread = threading.Thread(target=lambda: [*requests], name="requests")
        self._thread.start()

    def __iter__(self) -> Iterator[HandleExitsResponse]:
        self.ended.wait(LIMIT_SECONDS)
        return iter(())

    def cancel(self) -> None:
        self.ended.set()

    def join(self) -> None:
        self._thread.join(LIMIT_SECONDS)
        assert not self._thread.is_alive()


class Core:
    """Stub and `Rpc` at once: each unary call fails."""

    Pause = RequestWindow = None

    def __init__(self, error: VmsessionError) -> None:
        self.error = error

    def HandleExits(self, requests: Iterable[HandleExitsRequest]) -> Call:  # noqa: N802 - as generated
        self.stream = Call(requests)
        return self.stream

    def call(self, *_: object) -> None:
        raise self.error


@pytest.mark.parametrize("ask", ["pause", "window"])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Refused("ENGINE_DIED", "engine kvm: gone", {"why": "gone"}, "ABORTED"), SessionEnded),
        (Refused("NOT_FOUND", "no such session", {}, "NOT_FOUND"), SessionEnded),
        (CoreUnavailable("socket", "UNAVAILABLE", "look"), SessionEnded),
        (Refused("TAKEN_OVER", "another", {}, "ABORTED"), Refused),
        (Closed("the connection"), Closed),
    ],
)
def test_a_request_that_fails_ends_the_stream_as_a_reply_does(
    ask: str, error: VmsessionError, told: type[VmsessionError]
) -> None:
    core = Core(error)
    side = EngineSide(0, 0)
    relay = Relay(NAME, side, cast("Rpc", core), cast("VmSessionServiceStub", core))
    relay.start()
    page = StreamPage(relay, side)
    getattr(page.waiter, ask)()
    core.stream.join()
    relay.join()
    with pytest.raises(told):
        page.check()
    page.release()


def test_a_stream_over_a_closed_connection(tmp_path: Path) -> None:
    rpc = Rpc(str(tmp_path / "socket"))
    stub = VmSessionServiceStub(rpc.channel)
    rpc.close()
    relay = Relay(NAME, EngineSide(0, 0), rpc, stub)
    with pytest.raises(Closed):
        relay.start()
