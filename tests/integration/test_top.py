"""`vmm top`, for programs and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dataspace.vcpu_page import PAGE_BYTES
from tests.integration.commands import vmm
from tests.integration.running_core import RunningCore, Stubs
from vmm_client import Session, connect

OTHER_SCREEN = b"\x1b[?1049h"
FIRST_SCREEN = b"\x1b[?1049l"


@pytest.fixture
def session(core: RunningCore, stubs: Stubs) -> Iterator[Session]:
    """A machine whose vCPU stands at its first exit."""
    with (
        connect(str(core.socket)) as connection,
        connection.create_session("soft", label="mine") as session,
    ):
        vcpu = session.create_vcpu()
        vcpu.run()
        vcpu.wait()
        yield session


def test_a_program_gets_one_look_with_rates(core: RunningCore, session: Session) -> None:
    completed = vmm("top", "--json", "--interval", "0.1", socket=core.socket)
    told = json.loads(completed.stdout)
    assert [row["session"] for row in told["sessions"]] == [session.name]
    (row,) = told["vcpus"]
    assert (row["vcpu"], row["exits"], row["exits_per_s"]) == (f"{session.name}/vcpus/0", 1, 0.0)
    assert told["memory"]["live_bytes"] == PAGE_BYTES
    assert session.name in [event["object"] for event in told["events"]]


def test_a_pipe_gets_one_look(core: RunningCore, session: Session) -> None:
    completed = vmm("top", "--interval", "0.1", socket=core.socket)
    assert (completed.returncode, completed.stderr) == (0, "")
    assert completed.stdout.startswith("sessions: 1, vCPUs: 1, dataspaces: 1 of 12 KiB, ")
    assert f"\n{session.name}\tmine\tsoft\t1\t0 B\t" in completed.stdout


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Our end of a terminal, and the other one."""
    ours, theirs = pty.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("way", ["q", "SIGTERM"])
def test_a_terminal_is_as_it_was_afterwards(core: RunningCore, session: Session, way: str) -> None:
    command = [str(Path(sys.executable).parent / "vmm"), "top", "--interval", "0.1"]
    environment = os.environ | {"VMSESSION_SOCKET": str(core.socket), "TERM": "xterm"}
    with terminal() as (ours, theirs):
        before = termios.tcgetattr(theirs)
        with subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        ) as process:
            shown = read_until(ours, b"q leaves", 2)
            assert session.name.encode() in shown
            if way == "q":
                os.write(ours, b"xq")
            else:
                process.send_signal(signal.SIGTERM)
            shown += read_until(ours, FIRST_SCREEN, 1)
            assert process.wait(20) == (0 if way == "q" else 128 + signal.SIGTERM)
        assert shown.count(OTHER_SCREEN) == 1
        assert termios.tcgetattr(theirs) == before


def read_until(descriptor: int, text: bytes, times: int) -> bytes:
    """What a terminal shows until it showed `text` so many times, or ended."""
    shown = b""
    with suppress(OSError):
        while shown.count(text) < times:
            shown += os.read(descriptor, 65536)
    return shown
