"""`vmm boot` on a terminal, as a user has it: stock Linux, typed to and left."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.running_core import RunningCore, Stubs
from vmm_client.boot.images import default_cache, obtain

VMM = Path(sys.executable).parent / "vmm"
BOOT_SECONDS = 50.0


@pytest.fixture(scope="module", autouse=True)
def images() -> None:
    """Debian's images, fetched once. Where none are to be had, `make demo` says so; here it fails."""
    obtain(default_cache())


class Terminal:
    """`vmm boot` on a pseudo-terminal."""

    def __init__(self, core: RunningCore, *options: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [VMM, "boot", "--socket", core.socket, *options],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = b""

    def expect(self, text: bytes) -> None:
        """Read until `text` appears."""
        end = time.monotonic() + BOOT_SECONDS
        while text not in self.seen:
            ready, _, _ = select.select([self._master], [], [], max(0, end - time.monotonic()))
            assert ready, self.seen
            try:
                self.seen += os.read(self._master, 4096)
            except OSError:  # EIO: the process is gone
                raise AssertionError(self.seen) from None

    def type(self, text: bytes) -> None:
        """Keys."""
        os.write(self._master, text)

    def close(self) -> None:
        """Whatever is left of it ends."""
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(core: RunningCore) -> Iterator[Terminal]:
    """A machine that is booting."""
    running = Terminal(core)
    try:
        yield running
    finally:
        running.close()


def test_a_shell_that_is_typed_to_and_powers_off(terminal: Terminal) -> None:
    terminal.expect(b"exit or poweroff -f ends the machine")
    terminal.expect(b"# ")
    terminal.type(b"echo $((6*7))-from-the-guest\r")
    terminal.expect(b"42-from-the-guest")
    terminal.type(b"poweroff -f\r")
    terminal.expect(b"the machine ended: power off")
    assert terminal.process.wait(20) == 0


def test_ctrl_a_x_leaves(terminal: Terminal) -> None:
    terminal.expect(b"Ctrl-A x leaves")
    terminal.type(b"\x01x")
    terminal.expect(b"the machine ended: left by its user")
    assert terminal.process.wait(20) == 130


def test_sigterm_ends_it_in_order(terminal: Terminal, stubs: Stubs) -> None:
    terminal.expect(b"Ctrl-A x leaves")
    terminal.process.terminate()
    assert terminal.process.wait(20) == 143
    assert stubs.totals().sessions == 0  # no grace: it closed what it had


def test_a_kernel_that_panics_resets(core: RunningCore) -> None:
    running = Terminal(core, "--append", "rdinit=/nowhere root=/dev/nothing")
    try:
        running.expect(b"the machine ended: reset")
        assert running.process.wait(20) == 3
    finally:
        running.close()
