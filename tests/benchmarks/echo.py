"""The client of `echo_server`: what gRPC alone costs, as a floor."""

from __future__ import annotations

import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import grpc

from tests.benchmarks.echo_server import STREAM, UNARY
from tests.benchmarks.helper import Helper

PAYLOAD: Final = bytes(64)  # about a common message


class EchoStream:
    """An open stream, used as a stub's user does: requests by a queue, answers one by one."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._requests: queue.Queue[bytes | None] = queue.Queue()
        self._answers: Iterator[bytes] = iter(
            channel.stream_stream(STREAM, bytes, bytes)(self._outgoing())
        )

    def _outgoing(self) -> Iterator[bytes]:
        while (request := self._requests.get()) is not None:
            yield request

    def exchange(self) -> None:
        """There and back."""
        self._requests.put(PAYLOAD)
        assert next(self._answers) == PAYLOAD

    def close(self) -> None:
        """End it in order."""
        self._requests.put(None)
        assert not list(self._answers)


class Echo:
    """The server on one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._unary = channel.unary_unary(UNARY, bytes, bytes)

    def call(self) -> None:
        """There and back."""
        assert self._unary(PAYLOAD) == PAYLOAD

    def stream(self) -> EchoStream:
        """A new stream."""
        return EchoStream(self._channel)


@contextmanager
def echo(directory: Path) -> Iterator[Echo]:
    """A server process, and a channel to it."""
    socket = directory / "echo.sock"
    command: list[str | Path] = [sys.executable, "-m", "tests.benchmarks.echo_server", socket]
    with Helper(command) as server:
        assert server.answer() == "ready\n"
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            yield Echo(channel)
