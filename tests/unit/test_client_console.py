"""The console on pipes and terminals: nothing typed is lost, and a terminal ends as it began."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from vmm_client import console

WAIT_SECONDS = 20.0

# A machine's stand-in: it waits, inside the console, for what ends it.
WAITER = """
import signal, sys
from vmm_client import console
try:
    with console.attached(len, lambda: None):
        print("attached", flush=True)
        {wait}
except RuntimeError:
    print("failed", flush=True)
"""


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The writing end of what is typed."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        yield writing
        os.close(writing)


class SlowGuest:
    """Takes `most` bytes at a time, and after each gulp nothing once."""

    def __init__(self, most: int, wanted: int) -> None:
        self.got = b""
        self.all_here = threading.Event()
        self._most = most
        self._wanted = wanted
        self._full = False

    def receive(self, typed: bytes) -> int:
        self._full = not self._full
        taken = typed[: self._most] if self._full else b""
        self.got += taken
        if len(self.got) >= self._wanted:
            self.all_here.set()
        return len(taken)


def test_what_the_guest_does_not_take_is_kept(pipe: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "RETRY_MS", 1)
    pasted = bytes(range(2, 250)) * 100
    guest = SlowGuest(1000, len(pasted))
    with console.attached(guest.receive, pytest.fail):
        os.write(pipe, pasted)
        assert guest.all_here.wait(WAIT_SECONDS)
    assert guest.got == pasted


def test_a_guest_that_takes_nothing_does_not_keep_the_console(pipe: int) -> None:
    asked = threading.Event()

    def receive(_typed: bytes) -> int:
        asked.set()
        return 0

    with console.attached(receive, pytest.fail):
        os.write(pipe, b"never read")
        assert asked.wait(WAIT_SECONDS)


def test_output_waits_for_a_reader_that_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        said = b"x" * (1 << 20)
        writer = threading.Thread(target=console.write, args=(said,))
        writer.start()
        assert reader.read(len(said)) == said
        writer.join(WAIT_SECONDS)
        assert not writer.is_alive()


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, wait: str) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [sys.executable, "-c", WAITER.format(wait=wait)],
            stdin=self.slave,
            stdout=subprocess.PIPE,
        )
        assert self.said() == b"attached\n"

    def said(self) -> bytes:
        assert self.process.stdout
        return self.process.stdout.readline()

    def raw(self) -> bool:
        return termios.tcgetattr(self.slave) != self.before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def waiting() -> Iterator[Terminal]:
    terminal = Terminal("signal.pause()")
    yield terminal
    terminal.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_it_leaves_the_terminal_as_it_was(
    waiting: Terminal, number: signal.Signals
) -> None:
    assert waiting.raw()
    waiting.process.send_signal(number)
    assert waiting.process.wait(WAIT_SECONDS) == 128 + number
    assert not waiting.raw()


def test_a_stopped_process_leaves_the_terminal_usable(waiting: Terminal) -> None:
    waiting.process.send_signal(signal.SIGTSTP)
    _, status = os.waitpid(waiting.process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    assert not waiting.raw()
    # signal.pause() returns when a handler has run. It may not have been entered when the first one did.
    ended = None
    for _ in range(100):
        waiting.process.send_signal(signal.SIGCONT)
        with suppress(subprocess.TimeoutExpired):
            ended = waiting.process.wait(WAIT_SECONDS / 100)
            break
    assert ended == 0  # the block ended in order
    assert not waiting.raw()


def test_an_exception_leaves_the_terminal_as_it_was() -> None:
    terminal = Terminal("raise RuntimeError")
    assert terminal.said() == b"failed\n"
    assert terminal.process.wait(WAIT_SECONDS) == 0
    assert not terminal.raw()
    terminal.close()
