"""Bad input from every side: a clear message with what to do next, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from vmsession.v1 import vm_session_pb2

from tests.integration.commands import vmm
from tests.integration.engines import on_every_engine
from tests.integration.running_core import RunningCore, Stubs
from tests.integration.waiting import eventually

TRIPLE_FAULT = bytes.fromhex("0f011d 00000000 0f0b")  # lidt [0], which has limit 0; ud2
GREETING = bytes.fromhex("b0 48 e6 e9 fa f4")  # mov al,'H'; out 0xe9,al; cli; hlt
ENDLESS = bytes.fromhex("ebfe")


def said(completed: subprocess.CompletedProcess[str], status: int) -> str:
    """What a command that must fail says: one line, and a hint, never a traceback."""
    assert completed.returncode == status, completed
    assert "Traceback" not in completed.stderr
    assert completed.stderr.startswith("vmm: ")
    assert len(completed.stderr.splitlines()) <= 2
    return completed.stderr


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """A binary that says H and halts for good."""
    path = tmp_path / "flat.bin"
    path.write_bytes(GREETING)
    return path


@on_every_engine
def test_a_flat_binary_runs(core: RunningCore, stubs: Stubs, flat: Path, engine: str) -> None:
    completed = vmm("run", flat, "--engine", engine, socket=core.socket)
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, "H", "")
    assert stubs.totals().created == 2


@on_every_engine
def test_a_guest_that_triple_faults_at_once(
    core: RunningCore, stubs: Stubs, tmp_path: Path, engine: str
) -> None:
    # in protected mode: in real mode KVM here calls it an internal error
    guest = tmp_path / "fault.bin"
    guest.write_bytes(TRIPLE_FAULT)
    completed = vmm("run", guest, "--mode", "protected", "--engine", engine, socket=core.socket)
    assert "triple fault" in said(completed, 4)
    assert stubs.totals().sessions == 0


def test_no_flat_binary(core: RunningCore, tmp_path: Path) -> None:
    assert "No such file" in said(vmm("run", tmp_path / "none", socket=core.socket), 1)
    assert said(vmm("run", tmp_path, socket=core.socket), 1)
    empty = tmp_path / "empty"
    empty.touch()
    assert "empty" in said(vmm("run", empty, socket=core.socket), 1)
    large = tmp_path / "large"
    large.write_bytes(bytes(1 << 20))
    assert said(vmm("run", large, "--memory", "64K", socket=core.socket), 1)


@pytest.mark.parametrize("size", ["0", "-1", "1X", "99999999999999999999", "16T", ""])
def test_absurd_memory(core: RunningCore, stubs: Stubs, flat: Path, size: str) -> None:
    completed = vmm("run", flat, f"--memory={size}", socket=core.socket)
    assert completed.returncode in {1, 2}
    assert said(completed, completed.returncode)
    assert stubs.totals().live == 0


def test_unknown_engine(core: RunningCore, flat: Path) -> None:
    error = said(vmm("run", flat, "--engine", "xen", socket=core.socket), 1)
    assert "xen" in error
    assert "kvm, soft" in error


@pytest.mark.parametrize("content", [b"", b"MZ", b"\x7fELF" + bytes(4096), bytes(100_000)])
def test_no_kernel(core: RunningCore, stubs: Stubs, tmp_path: Path, content: bytes) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(content)
    assert said(vmm("boot", kernel, "--engine", "soft", socket=core.socket), 1)
    assert "No such file" in said(vmm("boot", tmp_path / "none", socket=core.socket), 1)
    assert stubs.totals().live == 0


def test_core_is_not_running(tmp_path: Path) -> None:
    error = said(vmm("sessions", socket=tmp_path / "core.sock"), 1)
    assert "vmcore serve" in error


def test_a_socket_without_core(tmp_path: Path) -> None:
    plain = tmp_path / "core.sock"
    plain.touch()
    assert said(vmm("sessions", socket=plain), 1)


def test_no_permission_on_the_socket(core: RunningCore) -> None:
    core.socket.chmod(0o600)
    script = f"""
import os, sys
from tests.integration.running_core import become_other_user
from vmm_client.cli.main import main
import vmm_client.cli.sessions
become_other_user()
main(["sessions", "--socket", {str(core.socket)!r}])
"""
    if os.geteuid() != 0:
        core.socket.chmod(0)
    completed = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "ermission" in said(completed, 1)
    assert stat.S_ISSOCK(core.socket.stat().st_mode)


@on_every_engine
def test_the_engine_dies_under_a_vmm(
    core: RunningCore, stubs: Stubs, tmp_path: Path, engine: str
) -> None:
    guest = tmp_path / "endless.bin"
    guest.write_bytes(ENDLESS)
    running = subprocess.Popen(
        [Path(sys.executable).parent / "vmm", "run", guest, "--engine", engine],
        env=os.environ | {"VMSESSION_SOCKET": str(core.socket)},
        stderr=subprocess.PIPE,
        text=True,
    )
    eventually(lambda: _vcpus(stubs) == 1)
    for pid in core.engine_pids():
        os.kill(pid, signal.SIGKILL)
    _, error = running.communicate(timeout=20)
    assert running.returncode == 1
    assert re.search(r"killed by signal 9", error), error
    assert "Traceback" not in error


@on_every_engine
def test_core_dies_under_a_vmm(core: RunningCore, tmp_path: Path, engine: str) -> None:
    guest = tmp_path / "endless.bin"
    guest.write_bytes(ENDLESS)
    watcher = Stubs(core.socket)
    running = subprocess.Popen(
        [Path(sys.executable).parent / "vmm", "run", guest, "--engine", engine],
        env=os.environ | {"VMSESSION_SOCKET": str(core.socket)},
        stderr=subprocess.PIPE,
        text=True,
    )
    eventually(lambda: _vcpus(watcher) == 1)
    watcher.close()
    core.kill()
    _, error = running.communicate(timeout=20)
    assert running.returncode == 1
    assert "Traceback" not in error
    assert "core" in error


def test_a_vmm_that_is_interrupted(core: RunningCore, stubs: Stubs, tmp_path: Path) -> None:
    guest = tmp_path / "endless.bin"
    guest.write_bytes(ENDLESS)
    running = subprocess.Popen(
        [Path(sys.executable).parent / "vmm", "run", guest, "--engine", "soft"],
        env=os.environ | {"VMSESSION_SOCKET": str(core.socket)},
        stderr=subprocess.PIPE,
        text=True,
    )
    eventually(lambda: _vcpus(stubs) == 1)
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=20)
    assert (running.returncode, error) == (130, "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a core for another user")
def test_a_core_that_may_not_open_kvm(flat: Path) -> None:
    # everything is imported as root: the other user need not reach Python's own files
    script = """
from importlib.metadata import version
version("vmsession")
from core_service.main import main
from tests.integration.running_core import become_other_user
become_other_user()
main()
"""
    core = RunningCore(command=(sys.executable, "-c", script))
    try:
        error = said(vmm("run", flat, "--engine", "kvm", socket=core.socket), 1)
        assert "/dev/kvm" in error
        assert "ermission" in error
        completed = vmm("run", flat, "--engine", "auto", socket=core.socket)
        assert (completed.returncode, completed.stdout) == (0, "H")
        core.stop()
    finally:
        core.close()


def test_lists_as_json(core: RunningCore, stubs: Stubs, flat: Path) -> None:
    assert stubs.totals().sessions == 0
    vmm("run", flat, "--engine", "soft", socket=core.socket)
    records = json.loads(vmm("dataspaces", "--all", "--json", socket=core.socket).stdout)
    assert [record["state"] for record in records] == ["freed", "freed"]
    assert json.loads(vmm("sessions", "--json", socket=core.socket).stdout) == []


def _vcpus(stubs: Stubs) -> int:
    sessions = stubs.vm.ListSessions(vm_session_pb2.ListSessionsRequest()).sessions
    return sum(session.vcpus for session in sessions)
