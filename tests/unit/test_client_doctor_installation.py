"""What the doctor says of core's processes and of what core has."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from vmm_client.doctor import installation, kernel, processes
from vmm_client.doctor.check import Check
from vmm_client.doctor.processes import Process, core_of, engines, keepers

STATUS = {
    "Name": "vmcore",
    "Uid": "995\t995\t995\t995",
    "Gid": "995\t995\t995\t995",
    "Groups": "103 995",
    "NoNewPrivs": "1",
    "Seccomp": "2",
}
LIMITS = "Limit  Soft Limit  Hard Limit  Units\nMax open files            {0}    {0}    files\n"


def put(proc: Path, pid: int, *command: str, limit: str = "1048576", **status: str) -> None:
    """A process in a /proc."""
    own = proc / str(pid)
    own.mkdir(parents=True)
    lines = (f"{name}:\t{value}\n" for name, value in {**STATUS, **status}.items())
    (own / "status").write_text("".join(lines))
    (own / "cmdline").write_bytes("".join(f"{word}\0" for word in command).encode())
    (own / "limits").write_text(LIMITS.format(limit))
    (own / "cgroup").write_text("0::/system.slice/vmsession.service/core\n")


def made(proc: Path, *command: str, limit: str = "1048576", **status: str) -> Process:
    put(proc, 7, *command, limit=limit, **status)
    found = processes.process(7, proc)
    assert found
    return found


def test_core_is_who_has_locked_its_directory(tmp_path: Path) -> None:
    proc, directory = tmp_path / "proc", tmp_path / "run"
    put(proc, 41, "vmcore", "serve", "--keep", "60")
    directory.mkdir()
    (directory / "core.lock").touch()
    lock = (directory / "core.lock").stat()
    device = f"{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}"
    (proc / "locks").write_text(
        f"1: FLOCK  ADVISORY  WRITE 40 {device}:{lock.st_ino + 1} 0 EOF\n"
        f"2: POSIX  ADVISORY  WRITE 40 {device}:{lock.st_ino} 0 EOF\n"
        f"3: FLOCK  ADVISORY  WRITE 41 {device}:{lock.st_ino} 0 EOF\n"
        f"3: -> FLOCK  ADVISORY  WRITE 42 {device}:{lock.st_ino} 0 EOF\n"
    )
    found = core_of(directory, proc)
    assert found
    assert (found.pid, found.uid, found.groups) == (41, 995, {103, 995})
    assert found.descriptors == 1 << 20
    (directory / "core.lock").unlink()
    assert core_of(directory, proc) is None


def test_a_lock_of_nobody_is_no_core(tmp_path: Path) -> None:
    (tmp_path / "core.lock").touch()
    (tmp_path / "locks").write_text("")
    assert core_of(tmp_path, tmp_path) is None


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (("--keep", "60"), "60"),
        (("--keep=60",), "60"),
        (("--keeper", "60"), ""),
        (("--keep",), ""),
        ((), ""),
    ],
)
def test_an_option_is_found(tmp_path: Path, words: tuple[str, ...], value: str) -> None:
    assert made(tmp_path, "vmcore", "serve", *words).option("--keep") == value


def test_engines_and_keepers_are_those_of_cores_user(tmp_path: Path) -> None:
    put(tmp_path, 1, "init", Name="systemd", Uid="0 0 0 0")
    put(tmp_path, 2, "vmsession-kvm", Name="vmsession-kvm")
    put(tmp_path, 3, "vmsession-kvm", Name="vmsession-kvm", Uid="1000 1000 1000 1000")
    put(tmp_path, 4, "python3", "-m", "core_service.keeper", Name="python3")
    (tmp_path / "self").mkdir()
    assert [each.pid for each in engines(995, tmp_path)] == [2]
    assert [each.pid for each in keepers(995, tmp_path)] == [4]


def test_few_descriptors_are_told(tmp_path: Path) -> None:
    found = installation._descriptors(made(tmp_path, "vmcore", limit="1024"))
    assert (found.works, found.detail.split(";")[0]) == (False, "1024")
    assert "LimitNOFILE" in found.detail


def test_unlimited_descriptors_are_enough(tmp_path: Path) -> None:
    assert installation._descriptors(made(tmp_path, "vmcore", limit="unlimited")).works


@pytest.mark.parametrize(
    ("seccomp", "uid", "works"), [("2", 995, True), ("0", 995, None), ("2", 0, None)]
)
def test_privilege(tmp_path: Path, seccomp: str, uid: int, works: bool | None) -> None:
    ids = f"{uid} {uid} {uid} {uid}"
    core = made(tmp_path, "vmcore", Seccomp=seccomp, Uid=ids)
    assert installation._privilege(core).works is works


def test_an_engine_that_is_not_confined_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, 8, "vmsession-soft", Name="vmsession-soft")
    put(tmp_path, 9, "vmsession-soft", Name="vmsession-soft", Seccomp="0")
    monkeypatch.setattr(installation, "engines", lambda uid: engines(uid, tmp_path))
    found = {check.what: check.works for check in installation._engines(made(tmp_path, "vmcore"))}
    assert found == {"vmsession-soft 8": True, "vmsession-soft 9": False}


def test_machines_that_end_with_core_are_no_fault(tmp_path: Path) -> None:
    assert installation._keeper(made(tmp_path, "vmcore", "serve", "--keep=0")).works is None


def test_a_keeper_that_is_missing_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "keepers", lambda uid: keepers(uid, tmp_path))
    core = made(tmp_path, "vmcore", "serve", "--keep", "60")
    assert installation._keeper(core).works is False
    put(tmp_path, 50, "python3", "-m", "core_service.keeper")
    assert installation._keeper(core) == Check("core", "keeper", True, "50")


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core = made(tmp_path / "proc", "vmcore", "--audit-directory", str(tmp_path / "not" / "yet"))
    told = installation._space(core)
    assert (told.where, told.what) == ("audit log", str(tmp_path / "not" / "yet"))
    monkeypatch.setattr(installation, "LEAST_SPACE", 1 << 60)
    told = installation._space(core)
    assert told.works is False
    assert "make room" in told.detail


def test_a_cgroup_that_core_divides(tmp_path: Path) -> None:
    core = replace(made(tmp_path / "proc", "vmcore"), cgroup=tmp_path / "unit" / "core")
    (tmp_path / "unit" / "engines").mkdir(parents=True)
    switches = tmp_path / "unit" / "engines" / "cgroup.subtree_control"
    switches.write_text("cpuset cpu memory pids\n")
    assert installation._delegation(core).works
    switches.write_text("cpu pids\n")
    told = installation._delegation(core)
    assert told.works is None
    assert "no limits by memory, cpuset" in told.detail


def test_a_cgroup_that_is_not_for_this_user_to_read(tmp_path: Path) -> None:
    core = replace(made(tmp_path / "proc", "vmcore"), cgroup=tmp_path / "unit" / "core")
    switches = tmp_path / "unit" / "engines" / "cgroup.subtree_control"
    switches.mkdir(parents=True)  # root could read a file
    told = installation._delegation(core)
    assert told.works is None
    assert told.detail == f"{switches} is not for you to read: ask as root"


@pytest.mark.parametrize("name", ["unit", "core"])
def test_a_cgroup_that_is_not_cores(tmp_path: Path, name: str) -> None:
    told = installation._delegation(replace(made(tmp_path, "vmcore"), cgroup=tmp_path / name))
    assert told.works is None
    assert "was not given to core" in told.detail


@pytest.mark.parametrize(
    ("owner", "group", "mode", "may"),
    [
        (0, 103, 0o660, True),
        (0, 103, 0o600, False),
        (0, 104, 0o660, False),
        (0, 104, 0o666, True),
        (0, 103, 0o606, False),  # the group fits, and others count no more
        (995, 104, 0o600, True),
        (995, 103, 0o060, False),
    ],
)
def test_who_may_use_kvm(tmp_path: Path, owner: int, group: int, mode: int, may: bool) -> None:
    status = os.stat_result((mode, 0, 0, 0, owner, group, 0, 0, 0, 0))
    assert installation._may_use(made(tmp_path, "vmcore"), status) is may


def test_this_kernel_has_what_the_tests_run_on() -> None:
    found = {check.what: check.works for check in kernel.features()}
    assert set(found) == {
        *("futex_waitv", "Landlock", "seccomp", "memfd", "SO_PEERPIDFD", "cgroup v2")
    }
    assert found["futex_waitv"]
    assert found["memfd"]


def test_a_call_that_no_kernel_has_is_told() -> None:
    assert kernel._call(100_000) < 0
