"""What core writes into cgroups, and how it knows which one is its own: on plain directories."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core_service.allotment import Allotment
from core_service.cgroups import Cgroup, Cgroups, limits
from core_service.cgroups.delegation import cgroup_of, delegated
from core_service.cgroups.limits import CONTROLLERS, limit
from core_service.workers import workers

WHOLE = Allotment(3, frozenset({0, 1, 4}), 256 << 20, 150, 10)


def test_every_limit() -> None:
    assert limits.limits(WHOLE, CONTROLLERS) == {
        "memory.oom.group": "1",
        "memory.swap.max": "0",
        "memory.max": "268435456",
        "cpu.weight.nice": "3",
        "cpu.max": "150000 100000",
        "cpuset.cpus": "0-1,4",
        "pids.max": "10",
    }


def test_what_is_not_limited_stays_as_it_is() -> None:
    assert limits.limits(Allotment(), CONTROLLERS) == {
        "memory.oom.group": "1",
        "cpu.weight.nice": "0",
        "pids.max": "72",
    }


@pytest.mark.parametrize(
    ("controller", "files"),
    [
        ("memory", {"memory.oom.group", "memory.swap.max", "memory.max"}),
        ("cpu", {"cpu.weight.nice", "cpu.max"}),
        ("cpuset", {"cpuset.cpus"}),
        ("pids", {"pids.max"}),
        ("hugetlb", set()),
    ],
)
def test_each_controller_has_its_files(controller: str, files: set[str]) -> None:
    assert set(limits.limits(WHOLE, {controller})) == files


def test_the_smallest_share_of_a_cpu_is_one_the_kernel_takes() -> None:
    assert limits.limits(Allotment(cpu=1), {"cpu"})["cpu.max"] == "1000 100000"


def test_limits_go_into_files_that_are_there(tmp_path: Path) -> None:
    wanted = limits.limits(WHOLE, CONTROLLERS)
    for name in wanted:
        (tmp_path / name).touch()
    limit(tmp_path, WHOLE, CONTROLLERS)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == wanted


def test_a_kernel_without_swap(tmp_path: Path) -> None:
    for name in ("memory.oom.group", "memory.max"):
        (tmp_path / name).touch()
    limit(tmp_path, WHOLE, {"memory"})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["memory.max", "memory.oom.group"]


def test_a_limit_that_cannot_be_set_names_itself(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"pids\.max"):
        limit(tmp_path, WHOLE, {"pids"})


def told(tmp_path: Path, cgroup: str, mounts: str) -> Path:
    (tmp_path / "cgroup").write_text(cgroup)
    (tmp_path / "mountinfo").write_text(mounts)
    return tmp_path


def mount(root: str, where: Path, kind: str = "cgroup2") -> str:
    return f"30 23 0:26 {root} {where} rw,nosuid shared:4 - {kind} cgroup2 rw,nsdelegate\n"


def test_ones_own_cgroup_by_the_mount_that_shows_it(tmp_path: Path) -> None:
    (tmp_path / "fs/system.slice/a.service").mkdir(parents=True)
    line = "4:memory:/elsewhere\n0::/system.slice/a.service\n"
    wrong = mount("/", tmp_path, "cgroup") + mount("/user.slice", tmp_path / "other")
    whole = told(tmp_path, line, wrong + mount("/", tmp_path / "fs"))
    assert cgroup_of(whole) == tmp_path / "fs/system.slice/a.service"
    part = told(tmp_path, line, mount("/system.slice", tmp_path / "fs/system.slice"))
    assert cgroup_of(part) == tmp_path / "fs/system.slice/a.service"


@pytest.mark.parametrize(
    ("cgroup", "root"),
    [
        ("0::/../other\n", "/"),
        ("4:memory:/\n", "/"),
        ("0::/gone\n", "/"),
        ("0::/\n", "/below"),
        ("", "/"),
    ],
)
def test_one_that_cannot_be_seen(tmp_path: Path, cgroup: str, root: str) -> None:
    (tmp_path / "fs").mkdir()
    assert cgroup_of(told(tmp_path, cgroup, mount(root, tmp_path / "fs"))) is None
    assert cgroup_of(tmp_path / "nobody") is None


def test_a_cgroup_without_the_mark_is_not_cores(tmp_path: Path) -> None:
    (tmp_path / "fs").mkdir()
    own = told(tmp_path, "0::/\n", mount("/", tmp_path / "fs"))
    assert delegated(own) is None
    try:
        os.setxattr(tmp_path / "fs", "user.delegate", b"0")
    except OSError:
        pytest.skip("no extended attributes here")
    assert delegated(own) is None
    os.setxattr(tmp_path / "fs", "user.delegate", b"1")
    assert delegated(own) == tmp_path / "fs"


def test_a_core_that_was_started_in_its_part(tmp_path: Path) -> None:
    for part in ("unit/core", "unit/other"):
        (tmp_path / "fs" / part).mkdir(parents=True)
    try:
        os.setxattr(tmp_path / "fs/unit", "user.delegate", b"1")
    except OSError:
        pytest.skip("no extended attributes here")
    mounts = mount("/", tmp_path / "fs")
    assert delegated(told(tmp_path, "0::/unit/core\n", mounts)) == tmp_path / "fs/unit"
    assert delegated(told(tmp_path, "0::/unit/other\n", mounts)) is None


def test_this_process_is_in_one_that_is_not_given_away() -> None:
    assert delegated() is None


@pytest.mark.parametrize(
    ("events", "why"),
    [
        (
            "low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\n",
            "out of memory: its cgroup's limit of 4096 bytes",
        ),
        ("max 0\noom 0\noom_kill 1\n", "out of memory: the host, or a cgroup above its own"),
        ("max 9\noom 1\noom_kill 0\n", ""),
        ("", ""),
    ],
)
def test_whose_memory_was_short(tmp_path: Path, events: str, why: str) -> None:
    (tmp_path / "memory.events").write_text(events)
    with workers("test", 1) as thread:
        assert Cgroup(tmp_path, 4096, thread).out_of_memory() == why


def test_no_memory_controller_tells_nothing(tmp_path: Path) -> None:
    with workers("test", 1) as thread:
        assert Cgroup(tmp_path, 4096, thread).out_of_memory() == ""


async def test_a_cgroup_that_stays_is_told_and_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core_service.cgroups.cgroup.PAUSES", (0.0, 0.001))
    (tmp_path / "one" / "busy").mkdir(parents=True)
    with workers("test", 1) as thread:
        cgroup = Cgroup(tmp_path / "one", None, thread)
        await cgroup.remove()
        assert (tmp_path / "one").exists()
        (tmp_path / "one" / "busy").rmdir()
        await cgroup.remove()
        assert not (tmp_path / "one").exists()
        await cgroup.remove()


async def test_without_a_cgroup_there_are_none() -> None:
    cgroups = Cgroups()
    assert await cgroups.make("sessions/x", WHOLE) is None
    assert cgroups.adopt("sessions/x", WHOLE) is None
    cgroups.clear(())
    await cgroups.close()
