"""The terminal as a machine's serial console: raw, with Ctrl-A as the way out."""

from __future__ import annotations

import os
import select
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

ESCAPE: Final = 0x01  # Ctrl-A, as in QEMU and screen
LEAVE: Final = ord("x")
HELP: Final = "Ctrl-A x leaves, Ctrl-A a sends Ctrl-A"


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
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]


@contextmanager
def attached(receive: Callable[[bytes], object], leave: Callable[[], None]) -> Iterator[None]:
    """While the block runs, what is typed goes to `receive`, on a thread of its own.

    A terminal is raw meanwhile, and as it was afterwards. The end of a pipe is no end of the machine.
    """
    descriptor = sys.stdin.fileno()
    stop, stopped = os.pipe()
    reader = threading.Thread(
        target=_read, args=(descriptor, stop, EscapeFilter(leave), receive), daemon=True
    )
    with _raw(descriptor):
        reader.start()
        try:
            yield
        finally:
            os.close(stopped)
            reader.join()
            os.close(stop)


def _read(
    descriptor: int, stop: int, escapes: EscapeFilter, receive: Callable[[bytes], object]
) -> None:
    while True:
        ready, _, _ = select.select([descriptor, stop], [], [])
        if stop in ready:
            return
        typed = os.read(descriptor, 1024)
        if not typed:
            return
        receive(escapes.feed(typed))


@contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
