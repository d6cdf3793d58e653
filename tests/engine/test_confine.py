"""Engines are confined: what is not theirs to do ends them, or is refused."""

from __future__ import annotations

import errno
import signal
import subprocess
from pathlib import Path

import pytest

from core_service.engine.native.build import FLAGS, INCLUDE, NATIVE, compiler
from tests.engine.harness import Engine

DEADLY = (
    "unix socket",
    "internet socket",
    "execute",
    "fork",
    "vfork",
    "kill parent",
    "signal parent",
    "trace parent",
    "read parent",
    "other ioctl",
    "mount",
    "bpf",
    "io_uring",
    "keyctl",
    "perf",
    "userfaultfd",
    "dumpable",
    "pidfd_getfd",
    "unshare",
    "raise limit",
    "limit parent",
    "signal by input",
    "choose signal",
)
REFUSED = ("open file", "write file", "open kvm")


@pytest.fixture(scope="module")
def forbidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that confines itself as engines do."""
    target = tmp_path_factory.mktemp("confine") / "forbidden"
    sources = [Path(__file__).parent / "forbidden.c", NATIVE / "confine.c", NATIVE / "failure.c"]
    includes = [f"-I{path}" for path in (*INCLUDE, NATIVE)]
    command = [*compiler(), *FLAGS, *includes, *map(str, sources), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


def outcome(program: Path, *arguments: str) -> int:
    return subprocess.run([program, *arguments], timeout=20, check=False).returncode


@pytest.mark.parametrize("kind", ["", "loader"])
@pytest.mark.parametrize("deed", DEADLY)
def test_what_no_engine_does_ends_it(forbidden: Path, deed: str, kind: str) -> None:
    assert outcome(forbidden, deed, kind) == -signal.SIGSYS


@pytest.mark.parametrize("deed", REFUSED)
def test_files_are_refused(forbidden: Path, deed: str) -> None:
    assert outcome(forbidden, deed) == errno.EACCES


def test_what_loads_code_may_not_write_files_nor_read_them(forbidden: Path) -> None:
    assert outcome(forbidden, "open file", "loader") == errno.EACCES
    assert outcome(forbidden, "write file", "loader") == -signal.SIGSYS
    assert outcome(forbidden, "execute memory", "loader") == 0


def test_memory_is_not_executed_by_who_loads_no_code(forbidden: Path) -> None:
    assert outcome(forbidden, "execute memory") == -signal.SIGSYS


@pytest.mark.parametrize("deed", ["thread", "map memory", "allowed ioctl", "duplicate"])
def test_what_engines_need_they_have(forbidden: Path, deed: str) -> None:
    assert outcome(forbidden, deed) == 0
    assert outcome(forbidden, deed, "loader") == 0


def test_every_thread_of_an_engine_is_confined(engine: Engine, variant: str) -> None:
    if variant.endswith("sanitized"):
        pytest.skip("sanitizers need system calls of their own: such engines have no filter")
    tasks = list(Path(f"/proc/{engine.pid}/task").iterdir())
    assert tasks
    for task in tasks:
        status = (task / "status").read_text()
        assert "Seccomp:\t2\n" in status
        assert "NoNewPrivs:\t1\n" in status
