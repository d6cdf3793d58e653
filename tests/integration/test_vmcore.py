"""The command `vmcore`: one line that says what to do, or an orderly service."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from vmsession.v1 import core_pb2, vm_session_pb2

from tests.integration.running_core import ROOT, RunningCore, Stubs
from tests.integration.waiting import eventually

VMCORE = Path(sys.executable).parent / "vmcore"


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path, as sockets need."""
    path = Path(tempfile.mkdtemp(prefix="vmcore-test-"))
    yield path
    shutil.rmtree(path)


def refused(*arguments: object, environment: dict[str, str] | None = None) -> str:
    """What `vmcore serve` says when it cannot serve: one line."""
    with tempfile.TemporaryDirectory() as audit:
        completed = subprocess.run(
            [VMCORE, "serve", "--audit-directory", audit, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            env=os.environ | (environment or {}),
        )
    *log, last = completed.stderr.splitlines()
    assert completed.returncode == 1, completed
    assert completed.stdout == ""
    assert last.startswith("vmcore: ")
    assert not [line for line in log if not line.startswith("timestamp=")], completed.stderr
    return last


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(directory: Path) -> Iterator[Start]:
    """Starts `vmcore serve`, which may come to serve; `prepare` is for the shell before it."""
    processes = []

    def start(stderr: int = subprocess.DEVNULL, prepare: str = ":") -> subprocess.Popen[str]:
        script = f'{prepare}; exec "$0" "$@"'
        audit = directory / "audit"
        processes.append(
            subprocess.Popen(
                [
                    *("sh", "-c", script, VMCORE, "serve"),
                    *("--directory", directory, "--audit-directory", audit),
                ],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.communicate()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline()


def ended(process: subprocess.Popen[str]) -> int:
    """Its status after SIGTERM."""
    process.terminate()
    process.communicate(timeout=20)
    return process.returncode


def test_a_directory_whose_path_is_too_long(directory: Path) -> None:
    long = directory / ("x" * 100)
    said = refused("--directory", long)
    assert "at most 107 bytes" in said
    assert str(long) in said
    assert "choose another --directory" in said


def test_a_directory_that_is_none(directory: Path) -> None:
    plain = directory / "file"
    plain.touch()
    assert str(plain) in refused("--directory", plain)
    assert str(plain) in refused("--directory", plain / "below")


def test_something_else_where_the_socket_belongs(directory: Path) -> None:
    (directory / "core.sock").write_text("precious")
    assert str(directory / "core.sock") in refused("--directory", directory)
    assert (directory / "core.sock").read_text() == "precious"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--socket-mode", "9"),
        ("--socket-mode", "1000"),
        ("--socket-mode", "rw"),
        ("--grace", "-1"),
        ("--grace", "nan"),
        ("--grace", "soon"),
        ("--audit-file-events", "0"),
        ("--audit-keep-files", "-1"),
    ],
)
def test_usage(option: str, value: str) -> None:
    completed = subprocess.run(
        [VMCORE, "serve", f"{option}={value}"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert completed.returncode == 2
    last = completed.stderr.splitlines()[-1]
    assert f"argument {option}: {value!r} is no" in last


def test_nothing_is_left_of_a_killed_core_once_the_next_ended(
    start: Start, directory: Path
) -> None:
    killed = start()
    assert first_line(killed)
    assert len(list(directory.glob("inner-*"))) == 1
    killed.kill()
    killed.communicate()
    successor = start()
    assert first_line(successor)
    assert len(list(directory.glob("inner-*"))) == 1
    assert ended(successor) == 0
    assert {path.name for path in directory.iterdir()} == {"core.lock", "audit"}


def test_a_core_takes_over_what_a_killed_one_left(start: Start, directory: Path) -> None:
    first = start()
    assert first_line(first)
    first.kill()
    first.communicate()
    assert (directory / "core.sock").exists()
    second = start()
    assert first_line(second)
    stubs = Stubs(directory / "core.sock")
    assert stubs.core.GetInfo(core_pb2.GetInfoRequest()).client.pid == os.getpid()
    stubs.close()
    assert ended(second) == 0
    assert not (directory / "core.sock").exists()


def test_of_two_cores_at_once_one_serves(start: Start, directory: Path) -> None:
    """Also when neither saw the other's socket."""
    both = [start(subprocess.PIPE) for _ in range(2)]
    lines = [first_line(process) for process in both]
    assert sorted(bool(line) for line in lines) == [False, True]
    loser, winner = sorted(both, key=lambda process: bool(lines[both.index(process)]))
    _, error = loser.communicate(timeout=20)
    assert loser.returncode == 1
    assert "another core serves on" in error.splitlines()[-1]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(directory / "core.sock"))
    assert ended(winner) == 0


def test_a_full_disk_under_the_log_costs_nobody_a_session(start: Start, directory: Path) -> None:
    with Path("/dev/full").open("w") as full:
        core = start(full.fileno())
    assert first_line(core)
    stubs = Stubs(directory / "core.sock")
    create = vm_session_pb2.CreateSessionRequest(engine="soft")
    name = stubs.vm.CreateSession(create).session.name
    stubs.vm.DeleteSession(vm_session_pb2.DeleteSessionRequest(name=name))
    assert stubs.totals().engine_processes == 0
    stubs.close()
    assert ended(core) == 0


IGNORING = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_parent_that_ignores_its_children(start: Start, directory: Path) -> None:
    """An ignored SIGCHLD is inherited, and would have the kernel reap engines."""
    core = start(prepare=f'exec {sys.executable} -c \'{IGNORING}\' "$0" "$@"')
    assert first_line(core)
    stubs = Stubs(directory / "core.sock")
    create = vm_session_pb2.CreateSessionRequest(engine="soft")
    name = stubs.vm.CreateSession(create).session.name
    stubs.vm.DeleteSession(vm_session_pb2.DeleteSessionRequest(name=name), timeout=15)
    stubs.close()
    assert ended(core) == 0


def test_capabilities_are_bounded_by_the_fds_that_there_are(start: Start, directory: Path) -> None:
    core = start(prepare="ulimit -n 800")
    assert first_line(core)
    stubs = Stubs(directory / "core.sock")
    assert stubs.core.GetInfo(core_pb2.GetInfoRequest()).capabilities.limit == 150
    stubs.close()
    assert ended(core) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_core_starts(start: Start, directory: Path, number: signal.Signals) -> None:
    core = start(subprocess.PIPE)
    eventually((directory / "core.lock").exists)
    core.send_signal(number)
    _, error = core.communicate(timeout=20)
    assert core.returncode == 0
    assert "Traceback" not in error
    assert not (directory / "core.sock").exists()
    assert not (directory / "fds.sock").exists()


def test_a_core_that_does_not_serve_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the tests' own making: nobody else could remove it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(AssertionError, match="it cannot"):
        RunningCore(command=(sys.executable, "-c", "raise SystemExit('it cannot')"))
    assert list(tmp_path.iterdir()) == []


def test_a_test_run_that_is_terminated_leaves_no_directory(directory: Path) -> None:
    endless = directory / "test_endless.py"
    endless.write_text("def test_endless(core):\n    core.process.wait()\n")
    plugins = ["-p", "tests.conftest", "-p", "tests.integration.conftest"]
    tests = subprocess.Popen(
        [sys.executable, "-m", "pytest", *plugins, "-c", ROOT / "pyproject.toml", endless],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        eventually(lambda: bool(list(directory.glob("vmsession-test-*/core.sock"))), limit=30)
        tests.terminate()
        told, _ = tests.communicate(timeout=25)
    finally:
        tests.kill()
        tests.communicate()
    assert tests.returncode == pytest.ExitCode.INTERRUPTED, told
    assert list(directory.glob("vmsession-test-*")) == []


def test_an_audit_log_that_cannot_be_used(directory: Path) -> None:
    audit = directory / "log"
    audit.write_text("precious")
    said = refused("--directory", directory, "--audit-directory", audit)
    assert str(audit) in said
    assert "choose another --audit-directory" in said
    assert audit.read_text() == "precious"
    audit.unlink()
    audit.mkdir()
    damaged = audit / f"events-{1:020}.sqlite"
    damaged.write_text("precious")
    assert str(damaged) in refused("--directory", directory, "--audit-directory", audit)
    assert damaged.read_text() == "precious"
    assert not (directory / "core.sock").exists()


def test_two_cores_do_not_share_an_audit_log(start: Start, directory: Path) -> None:
    assert first_line(start())
    said = refused("--directory", directory / "other", "--audit-directory", directory / "audit")
    assert "another core writes here" in said
