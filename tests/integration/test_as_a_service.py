"""Core under a service manager: its sockets are passed, and it says how it fares."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from vmsession.v1 import core_pb2

from tests.integration.running_core import ROOT, VMCORE, Stubs
from vmm_client.connection import connect

PYTHON = sys.executable
ACTIVATE = shutil.which("systemd-socket-activate")


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path, as sockets need. What a test that failed leaves running ends with it."""
    path = Path(tempfile.mkdtemp(prefix="vmcore-test-"))
    yield path
    while STARTED:
        with STARTED.pop() as process:
            process.kill()
    shutil.rmtree(path)


def start(
    directory: Path, *sockets: str, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """`vmcore serve` as systemd starts it."""
    process = subprocess.Popen(
        [
            *(PYTHON, "-m", "tests.integration.as_a_service", *sockets, "--"),
            *(VMCORE, "serve", "--directory", str(directory)),
            *("--audit-directory", str(directory / "audit")),
        ],
        cwd=ROOT,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(process)
    return process


def serving(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    line = process.stdout.readline()
    assert line.startswith("vmcore: serving on "), process.communicate()


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> str:
    """What it logged, after it ended in order."""
    process.send_signal(number)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 0, log
    return log


def test_core_serves_on_the_sockets_that_it_got(directory: Path) -> None:
    core_socket, fd_socket = directory / "core.sock", directory / "fds.sock"
    process = start(directory, f"fds:seqpacket:{fd_socket}", f"core:stream:{core_socket}")
    serving(process)
    inodes = core_socket.stat().st_ino, fd_socket.stat().st_ino
    with connect(str(core_socket)) as core, core.create_session("soft"):
        ram = core.create_ram(4096)
        ram.close()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:  # core's sockets are nobody else's
            links = [str(fd.readlink()) for fd in Path(f"/proc/{child}/fd").iterdir()]
            assert sum("socket" in link for link in links) <= 1
    assert "defect" not in end(process)
    assert (core_socket.stat().st_ino, fd_socket.stat().st_ino) == inodes


def test_one_of_two_sockets(directory: Path) -> None:
    core_socket = directory / "core.sock"
    process = start(directory, f"core:stream:{core_socket}")
    serving(process)
    with connect(str(core_socket)) as core:
        core.create_ram(4096).close()
    end(process)
    assert core_socket.exists()
    assert not (directory / "fds.sock").exists()


def test_who_connects_before_core_serves_waits(directory: Path) -> None:
    path = directory / "core.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(8)
        stubs = Stubs(path)
        info = stubs.core.GetInfo.future(core_pb2.GetInfoRequest(), timeout=30)
        os.set_inheritable(listening.fileno(), True)
        script = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3)\n"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='core')\n"
            "os.execv(sys.argv[2], sys.argv[2:])"
        )
        process = subprocess.Popen(
            [
                *(PYTHON, "-c", script, str(listening.fileno()), VMCORE, "serve"),
                *("--directory", directory, "--audit-directory", directory / "audit"),
            ],
            pass_fds=[listening.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert info.result().client.pid == os.getpid()
    stubs.close()
    end(process)


@pytest.mark.skipif(ACTIVATE is None, reason="systemd-socket-activate is not here")
def test_systemds_own_activation(directory: Path) -> None:
    assert ACTIVATE
    path = directory / "core.sock"
    process = subprocess.Popen(
        [
            *(ACTIVATE, "--listen", path, "--fdname", "core"),
            *(VMCORE, "serve", "--directory", directory, "--audit-directory", directory / "audit"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    assert process.stderr.readline().startswith(f"Listening on {path}")
    stubs = Stubs(path)  # the first connection starts core
    info = stubs.core.GetInfo(core_pb2.GetInfoRequest(), timeout=30)
    assert info.client.pid == os.getpid()
    stubs.close()
    end(process)
    assert path.exists()


@pytest.mark.parametrize(
    ("name", "kind", "file", "why"),
    [
        ("core", "seqpacket", "core.sock", "is SOCK_SEQPACKET: must be AF_UNIX SOCK_STREAM"),
        ("fds", "stream", "fds.sock", "is SOCK_STREAM: must be AF_UNIX SOCK_SEQPACKET"),
        ("core", "stream-deaf", "core.sock", "does not listen"),
        ("core", "stream", "other.sock", "must be {directory}/core.sock"),
        ("core", "file", "core.sock", "fd 3, named core, is no socket"),
        ("web", "stream", "core.sock", "a socket is named 'web'"),
    ],
)
def test_sockets_that_core_cannot_serve_on(
    directory: Path, name: str, kind: str, file: str, why: str
) -> None:
    process = start(directory, f"{name}:{kind}:{directory / file}")
    out, log = process.communicate(timeout=20)
    assert (process.returncode, out) == (1, "")
    last = log.splitlines()[-1]
    assert last.startswith("vmcore: ")
    assert why.format(directory=directory) in last
    assert last.endswith("; mend the socket's unit")
    assert (directory / file).exists()


@pytest.mark.parametrize(
    ("names", "why"),
    [("", "one name for each"), ("core:fds", "one name for each"), ("core:core", "one name")],
)
def test_names_that_do_not_fit(directory: Path, names: str, why: str) -> None:
    process = start(
        directory,
        *(
            f"{name}:stream:{directory / name}"
            for name in ("a", "b", "c")[: 1 + (names == "core:core")]
        ),
        environment={"LISTEN_FDNAMES": names},
    )
    _, log = process.communicate(timeout=20)
    assert process.returncode == 1
    assert why in log.splitlines()[-1]


def test_the_manager_is_told_from_ready_to_stopping(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(directory / "notify"))
        manager.settimeout(20)
        process = start(
            directory,
            environment={
                "NOTIFY_SOCKET": str(directory / "notify"),
                "WATCHDOG_USEC": "60000000",
            },
        )
        told = [manager.recv(4096).decode()]
        assert told == [f"READY=1\nSTATUS=serving\nMAINPID={process.pid}"]
        serving(process)
        end(process)
        manager.setblocking(False)
        while True:
            try:
                told.append(manager.recv(4096).decode())
            except BlockingIOError:
                break
    assert f"STOPPING=1\nSTATUS=stopping\nMAINPID={process.pid}" in told


def test_a_core_that_is_stuck_is_not_alive(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(directory / "notify"))
        manager.settimeout(20)
        process = start(
            directory,
            environment={"NOTIFY_SOCKET": str(directory / "notify"), "WATCHDOG_USEC": "100000"},
        )
        serving(process)
        while manager.recv(4096) != b"WATCHDOG=1":
            pass
        process.send_signal(signal.SIGSTOP)
        manager.settimeout(0.2)
        with suppress(TimeoutError):
            for _ in range(10):  # what was on its way, not more
                manager.recv(4096)
            pytest.fail("a process that is stopped says that it is alive")
        process.send_signal(signal.SIGCONT)
        manager.settimeout(20)
        while manager.recv(4096) != b"WATCHDOG=1":
            pass
        end(process)
