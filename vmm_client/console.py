"""The terminal as a machine's serial console: raw, with Ctrl-A as the way out."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

ESCAPE: Final = 0x01  # Ctrl-A, as in QEMU and screen
LEAVE: Final = ord("x")
HELP: Final = "Ctrl-A x leaves, Ctrl-A a sends Ctrl-A"

READ_BYTES: Final = 4096
RETRY_MS: Final = 50
ENDING_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)

Receive = Callable[[bytes], int]


class EscapeFilter:
    """Takes the escape sequences out of what is typed."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave = leave
        self._escaped = False

    def feed(self, typed: bytes) -> bytes:
        """What the guest is to get."""
        passed = bytearray()
        for byte in typed:
            if not self._escaped:
                self._escaped = byte == ESCAPE
                if not self._escaped:
                    passed.append(byte)
                continue
            self._escaped = False
            if byte in {LEAVE, ord("X")}:
                self._leave()
            elif byte in {ESCAPE, ord("a"), ord("A")}:
                passed.append(ESCAPE)
        return bytes(passed)


def write(data: bytes) -> None:
    """At once, and past Python's own buffer: a guest's last words must not be lost."""
    descriptor = sys.stdout.fileno()
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # whoever shares the terminal may have made it so
            select.select([], [descriptor], [])


@contextmanager
def attached(receive: Receive, leave: Callable[[], None]) -> Iterator[None]:
    """While the block runs, what is typed goes to `receive`, on a thread of its own. `receive` tells
    how many bytes it took; the rest is offered again, and nothing more is read meanwhile.

    A terminal is raw meanwhile, and as it was afterwards, also when SIGTERM or SIGHUP end the block:
    by SystemExit, with the status that a shell gives. The end of a pipe is no end of the machine.
    Main thread only.
    """
    descriptor = sys.stdin.fileno()
    stop, stopped = os.pipe()
    reader = threading.Thread(
        target=_read, args=(descriptor, stop, EscapeFilter(leave), receive), daemon=True
    )
    with unwound_by_signals(), _raw(descriptor):
        reader.start()
        try:
            yield
        finally:
            os.close(stopped)
            reader.join()
            os.close(stop)


def _read(descriptor: int, stop: int, escapes: EscapeFilter, receive: Receive) -> None:
    with suppress(OSError):  # EIO: the terminal is gone, which ends what is typed
        while not _stopped(stop, None, descriptor) and (typed := os.read(descriptor, READ_BYTES)):
            passed = escapes.feed(typed)
            while passed := passed[receive(passed) :]:
                if _stopped(stop, RETRY_MS):
                    return


def _stopped(stop: int, milliseconds: int | None, *others: int) -> bool:
    """Wait until `stop` or one of `others` is readable, or the time is over: whether it is `stop`."""
    poll = select.poll()
    for descriptor in (stop, *others):
        poll.register(descriptor, select.POLLIN)
    return stop in dict(poll.poll(milliseconds))


@contextmanager
def unwound_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP leave by an exception, so that everything is closed and restored."""

    def end(number: int, _frame: FrameType | None) -> None:
        for each in ENDING_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    """A terminal is raw while the block runs, but not while the process is stopped."""
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)

    def restore() -> None:
        with suppress(termios.error):  # it is gone
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)

    def suspend(*_: object) -> None:
        restore()
        os.kill(os.getpid(), signal.SIGSTOP)

    def resume(*_: object) -> None:
        tty.setraw(descriptor, termios.TCSADRAIN)

    handlers = {signal.SIGTSTP: suspend, signal.SIGCONT: resume}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    tty.setraw(descriptor)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        restore()
