"""gRPC calls with a deadline, and their errors as those of `vmm_client.errors`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar
from urllib.parse import quote
from uuid import uuid4

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from vmm_client.errors import Closed, CoreUnavailable, IncompatibleCore, Refused, VmsessionError

DEADLINE_SECONDS = 30.0
PATIENCE_SECONDS = 30.0  # for a core that is started anew
PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 0.5
GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
DOMAIN = "vmsession.v1"

Q = TypeVar("Q")
A = TypeVar("A")


class Rpc:
    """The channel to one core; owns it until `close`."""

    def __init__(self, path: str) -> None:
        """Connects with the first call. `path` is absolute."""
        self._path = path
        # A target is a URI. One transport for each channel: core tells clients apart by it.
        self.channel = grpc.insecure_channel(
            f"unix://{quote(path)}",
            [
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 5000),  # how long an attempt may take
                ("grpc.max_reconnect_backoff_ms", 500),
            ],
        )
        self.lease_holds: Callable[[], bool] = lambda: False
        self._closed = threading.Event()

    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[Q, A],
        request: Q,
        seconds: float = DEADLINE_SECONDS,
    ) -> A:
        """The answer, of the next core where one is started anew meanwhile. A mutation is carried out
        once: its request id tells. Raises Refused, CoreUnavailable, IncompatibleCore, Closed."""
        if not getattr(request, "request_id", "-"):
            request.request_id = uuid4().hex  # type: ignore[attr-defined]
        returns = self.returning()
        while True:
            try:
                return method(request, timeout=seconds)
            except grpc.RpcError as error:
                if not self.may_return(error) or not next(returns):
                    raise self.translated(error) from error
            except ValueError as error:  # what gRPC raises on a closed channel
                raise Closed(f"the connection to {self._path}") from error

    def may_return(self, error: grpc.RpcError) -> bool:
        """Whether a call failed because core ended, and what it held for us did not: another core is
        to take it over."""
        gone = isinstance(error, grpc.Call) and error.code() in GONE and not _error_info(error)
        return gone and not self._closed.is_set() and self.lease_holds()

    def returning(self) -> Iterator[bool]:
        """Wait for another core, longer each time: False when that took too long, or this is closed."""
        end, pause = time.monotonic() + PATIENCE_SECONDS, PAUSE_SECONDS
        while time.monotonic() < end and not self._closed.wait(pause):
            yield True
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        while True:
            yield False

    def close(self) -> None:
        """End the connection; closing again does nothing."""
        self._closed.set()
        self.channel.close()

    def translated(self, error: grpc.RpcError) -> VmsessionError:
        """What a call's error means: Refused, CoreUnavailable or IncompatibleCore."""
        assert isinstance(error, grpc.Call)  # what a call that was made raises
        code, details = error.code(), error.details() or ""
        if info := _error_info(error):
            return Refused(info.reason, details, info.metadata, code.name)
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return IncompatibleCore("core", f"without this method ({details})", DOMAIN)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            why = "it did not answer in time"
        else:
            why = f"{code.name}: {details}"
        return CoreUnavailable(self._path, why, "see whether it still runs; its log tells more")


def _error_info(call: grpc.Call) -> ErrorInfo | None:
    """What core says of a refusal. Details that are none, or not of this status, as those of a call that
    is cancelled while core refuses it, say nothing."""
    try:
        status = rpc_status.from_call(call)
        for detail in status.details if status else ():
            info = ErrorInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                return info
    except (ValueError, DecodeError):
        return None
    return None
