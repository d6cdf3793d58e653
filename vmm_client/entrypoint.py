"""One thread that serves many vCPUs, of one session or several."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from contextlib import ExitStack
from typing import Final

from dataspace._page import wait_any
from vmm_client.errors import VmsessionError
from vmm_client.exits import Exit
from vmm_client.vcpu import SLICE_SECONDS, Vcpu

MOST_VCPUS: Final = 128  # FUTEX_WAITV_MAX, linux/futex.h


def serve(vcpus: Iterable[Vcpu]) -> Generator[tuple[Vcpu, Exit], None, None]:
    """Run these vCPUs and give their exits as they come: see `Entrypoint.exits`."""
    return Entrypoint(vcpus).exits()


class Entrypoint:
    """The vCPUs that one thread serves, at most 128."""

    def __init__(self, vcpus: Iterable[Vcpu] = ()) -> None:
        self._vcpus: dict[Vcpu, None] = {}
        self._served: dict[Vcpu, ExitStack] = {}
        for vcpu in vcpus:
            self.add(vcpu)

    def add(self, vcpu: Vcpu) -> None:
        """Serve this one as well, from the next exit on: the way to start another CPU, which is
        not run before. Raises ValueError beyond 128."""
        if len(self._vcpus) == MOST_VCPUS:
            raise ValueError(f"an entrypoint serves at most {MOST_VCPUS} vCPUs")
        self._vcpus[vcpu] = None

    def exits(self) -> Generator[tuple[Vcpu, Exit], None, None]:
        """Run the vCPUs and give their exits; each runs on with its reply when the next exit is
        asked for. In turns: no vCPU starves another. One that is told to `stay` waits for its `run`.

        Ends when this program closed all sessions. Raises SessionEnded when one ended otherwise:
        its vCPU is dropped, and a new call goes on with the rest. Raises Busy, UnknownExit.
        """
        try:
            check_at = time.monotonic() + SLICE_SECONDS
            while self._vcpus:
                self._begin()
                idle = True
                for vcpu in tuple(self._vcpus):
                    if vcpu.serving.closed:
                        self._drop(vcpu)
                    elif (exit_ := vcpu.poll()) is not None:
                        idle = False
                        yield vcpu, exit_
                        vcpu.resume_unless_staying()
                if idle and self._vcpus:
                    self._wait()
                if time.monotonic() >= check_at:
                    self._check_alive()
                    check_at = time.monotonic() + SLICE_SECONDS
        finally:
            for stack in self._served.values():
                stack.close()
            self._served.clear()

    def _begin(self) -> None:
        for vcpu in tuple(self._vcpus):
            if vcpu in self._served:
                continue
            if vcpu.serving.closed:
                self._drop(vcpu)
                continue
            stack = self._served[vcpu] = ExitStack()
            stack.enter_context(vcpu.serving)
            stack.callback(setattr, vcpu, "may_stay", False)
            vcpu.may_stay = True
            vcpu.resume_unless_staying()

    def _drop(self, vcpu: Vcpu) -> None:
        del self._vcpus[vcpu]
        if stack := self._served.pop(vcpu, None):
            stack.close()

    def _wait(self) -> None:
        waiters, seen = zip(*(vcpu.awaited() for vcpu in tuple(self._vcpus)), strict=True)
        wait_any(waiters, seen, SLICE_SECONDS)

    def _check_alive(self) -> None:
        for vcpu in tuple(self._vcpus):
            try:
                vcpu.check_alive()
            except VmsessionError:
                self._drop(vcpu)
                raise
