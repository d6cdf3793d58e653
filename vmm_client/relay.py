"""The engine's side of a vCPU page for a vCPU with the stream transport: what the VMM writes there
travels as replies over HandleExits, and the exits that come back are written there.

So a VMM sees no difference. It needs no file descriptor of core; every exit goes through core.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

import grpc
from vmsession.v1.vcpu_pb2 import EXIT_REASON_PAUSED, EXIT_REASON_WINDOW, Exit, Reply
from vmsession.v1.vm_session_pb2 import (
    HandleExitsRequest,
    HandleExitsResponse,
    PauseRequest,
    RequestWindowRequest,
)
from vmsession.v1.vm_session_pb2_grpc import VmSessionServiceStub

from dataspace.vcpu_page import (
    DATA_BYTES,
    EXIT_DETAIL_AT,
    EXIT_INJECTION_AT,
    EXIT_REASON_AT,
    FPU_CHARGED,
    FPU_VALID,
    PAUSE_ACK_AT,
    VMM_HALF,
    WINDOW_ACK_AT,
    EngineHalf,
    ExitFlag,
    Injection,
    Reason,
    ReplyRefusal,
)
from vmm_client.engine_side import EngineSide
from vmm_client.errors import (
    BadMessage,
    Closed,
    CoreUnavailable,
    Refused,
    SessionEnded,
    VmsessionError,
)
from vmm_client.page import Page
from vmm_client.rpc import Rpc
from vmm_client.stream_messages import (
    Inexpressible,
    reply_message,
    wanted_masks,
    wanted_names,
    write_exit,
)

JOIN_SECONDS: Final = 1.0
ENDINGS: Final = ("NOT_FOUND", "ENGINE_DIED", "SHUTTING_DOWN")


class Relay:
    """Owns a HandleExits stream and the thread that takes its exits, from `start` until `end`."""

    def __init__(self, name: str, side: EngineSide, rpc: Rpc, stub: VmSessionServiceStub) -> None:
        self.name = name
        self._session = name.partition("/vcpus/")[0]
        self._side = side
        self._rpc = rpc
        self._stub = stub
        view = memoryview(side.mapping)
        self._exit = EngineHalf(view)
        self._reply = EngineHalf(view, VMM_HALF)
        self._fpu_valid = view[FPU_VALID:FPU_CHARGED]
        self._fpu_charged = view[FPU_CHARGED:]
        self._sequence = (
            0  # core's number of the last exit: ours are more, with refusals of our own
        )
        self._wanted = (0, 0)
        self._pauses: dict[int, int] = {}  # by core's number of a pause, the page's
        self._paused = self._window = 0  # what was passed on
        self._pauses_passed = 0
        self._ended = False
        self._returns: Iterator[bool] | None = None  # while no core answers
        self._lock = threading.Lock()
        self._stream = 0  # counts the streams: another after each end of core
        self._sent: tuple[int, Reply] | None = None  # the last reply, and the exit that it answers
        self._again: Reply | None = None  # a reply that no stream took to core
        self._failure: VmsessionError | None = None
        self._thread = threading.Thread(target=self._take_exits, name=f"relay {name}", daemon=True)

    def start(self) -> None:
        """Open the stream. Raises Closed."""
        self._open()
        self._thread.start()

    def _open(self) -> None:
        with self._lock:
            self._stream += 1
            stream = self._stream
        self._side.wake()  # who served the one before
        try:
            self._call = self._stub.HandleExits(self._requests(stream))
        except ValueError as error:  # what gRPC raises on a closed channel
            raise Closed(self.name) from error

    def check(self) -> None:
        """Raises what ended the stream, unless `end` did: SessionEnded, Refused, BadMessage, Closed."""
        if self._failure:
            raise self._failure.with_traceback(None)

    def end(self) -> None:
        """End the stream; does not wait. Any thread; again: nothing."""
        self._ended = True
        self._side.wake()
        self._call.cancel()  # type: ignore[no-untyped-call]  # of grpc-stubs

    def join(self) -> None:
        """Wait for the thread that takes exits, after `end`: at most a second."""
        self._thread.join(JOIN_SECONDS)

    def _fail(self, error: VmsessionError) -> None:
        if not self._ended:
            self._failure = error
            self.end()

    # From the page to the stream, on the thread by which gRPC takes requests.

    def _requests(self, stream: int) -> Iterator[HandleExitsRequest]:
        yield HandleExitsRequest(open=self.name)
        try:
            while (reply := self._next_reply(stream)) is not None:
                yield HandleExitsRequest(reply=reply)
        except VmsessionError as error:
            self._fail(self._what_ended(error))

    def _next_reply(self, stream: int) -> Reply | None:
        while not self._ended and stream == self._stream:
            if again := self._take_again():
                return again
            runs = self._side.runs()
            self._pass_on_requests()  # those before a run are for that run
            if not runs:
                self._side.sleep()
                continue
            try:
                reply = self._read_reply()
            except Inexpressible as refused:
                self._refuse(refused.check)
                continue
            with self._lock:
                self._sent = self._sequence, reply
                if stream == self._stream:
                    return reply
                self._again = reply
        return None

    def _take_again(self) -> Reply | None:
        with self._lock:
            reply, self._again = self._again, None
            return reply

    def _pass_on_requests(self) -> None:
        if (pause := self._side.pause_seq) != self._paused:
            self._paused = pause
            self._pauses_passed += 1
            self._pauses[self._pauses_passed] = pause
            self._rpc.call(self._stub.Pause, PauseRequest(vcpu=self.name))
        if (window := self._side.window_seq) != self._window:
            self._window = window
            self._rpc.call(self._stub.RequestWindow, RequestWindowRequest(vcpu=self.name))

    def _read_reply(self) -> Reply:
        if not self._side.exit_seq:
            return Reply()  # the first run answers no exit
        fpu = bytes(self._fpu_charged[: self._exit.fpu_size])
        reply = reply_message(self._reply, fpu, self._sequence, self._data_asked_for())
        wanted = wanted_masks(self._reply)
        if wanted != self._wanted:
            self._wanted = wanted
            reply.wanted.extend(wanted_names(wanted))
        return reply

    def _data_asked_for(self) -> int:
        if not self._exit.flags & ExitFlag.READ:
            return 0
        return min(self._exit.size * self._exit.count, DATA_BYTES) or 8

    def _refuse(self, check: ReplyRefusal) -> None:
        words = self._exit.u32
        words[EXIT_REASON_AT // 4] = Reason.INVALID_STATE
        words[EXIT_DETAIL_AT // 4] = check
        words[EXIT_INJECTION_AT // 4] = Injection.NONE
        self._side.publish()

    # From the stream to the page, on a thread of our own.

    def _take_exits(self) -> None:
        try:
            while self._comes_back():
                self._open()
        except ValueError as error:
            self._fail(BadMessage(self.name, str(error)))
        except VmsessionError as error:
            self._fail(error)

    def _comes_back(self) -> bool:
        """Take exits until the stream ends; True, after a pause, when another core may serve the next.

        Raises what ended it, ValueError for what core cannot mean.
        """
        response: HandleExitsResponse
        try:
            for response in self._call:
                self._returns = None
                if response.exit.sequence == self._sequence and self._stream > 1:
                    self._reply_again()
                else:
                    self._take(response.exit)
        except grpc.RpcError as error:
            if self._ended or not self._rpc.may_return(error):
                raise self._what_ended(self._rpc.translated(error)) from error
            self._returns = self._returns or self._rpc.returning()
            if not next(self._returns):
                raise self._what_ended(self._rpc.translated(error)) from error
            return True
        raise SessionEnded(self._session, "core closed the stream")

    def _reply_again(self) -> None:
        """The vCPU stands where it stood when core ended: a reply that was given did not arrive."""
        with self._lock:
            if self._sent and self._sent[0] == self._sequence:
                self._again = self._sent[1]
        self._side.wake()

    def _what_ended(self, error: VmsessionError) -> VmsessionError:
        if isinstance(error, CoreUnavailable):
            return SessionEnded(
                self._session, f"core closed the stream, or ended itself: {error.why}"
            )
        if isinstance(error, Refused) and error.reason in ENDINGS:
            return SessionEnded(self._session, error.metadata.get("why") or error.message)
        return error

    def _take(self, exit_: Exit) -> None:
        write_exit(exit_, self._exit, self._fpu_valid)
        if exit_.reason == EXIT_REASON_PAUSED:
            self._exit.u32[PAUSE_ACK_AT // 4] = self._acknowledged(exit_.pause_acknowledged)
        if exit_.reason == EXIT_REASON_WINDOW:
            self._exit.u32[WINDOW_ACK_AT // 4] = self._window
        self._sequence = exit_.sequence
        self._side.publish()

    def _acknowledged(self, pause: int) -> int:
        number = self._pauses.get(pause, self._paused)
        for answered in [*self._pauses]:
            if answered <= pause:
                del self._pauses[answered]
        return number


class StreamPage(Page):
    """The VMM's view of a page whose engine's side is a relay; owns the relay."""

    def __init__(self, relay: Relay, side: EngineSide) -> None:
        self._relay = relay
        super().__init__(side.mapping)

    def check(self) -> None:
        """Raises what ended the relay."""
        self._relay.check()

    def release(self) -> None:
        """End the relay, and let go of the page."""
        self._relay.end()
        super().release()
