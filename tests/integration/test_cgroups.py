"""Engines in cgroups of their own, in the real hierarchy; limits where it has the controllers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.cgroup2 import inside, own_cgroup, pids, release
from tests.integration.engines import on_every_engine
from tests.integration.running_core import VMCORE, RunningCore
from tests.integration.test_adoption import keeper_of
from tests.integration.waiting import eventually
from vmm_client import Segment, connect
from vmm_client.errors import Refused, SessionEnded

PAGE = 4096
MIB = 1 << 20
LIMIT = f"its cgroup's limit of {128 * MIB} bytes"
FLAT_CODE, FLAT_DATA = Segment(0x08, 0xC9B, 0xFFFFFFFF, 0), Segment(0x10, 0xC93, 0xFFFFFFFF, 0)
FILL = bytes.fromhex(
    "bf00001000 893f 81c700100000 ebf6"
)  # from 1 MiB on, page by page, until there is none
Start = Callable[..., tuple[RunningCore, Path]]


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts cores, each in a cgroup; in the end nothing may be in it."""
    with ExitStack() as stack:

        def started(*options: str, given: bool = True, part: str = "") -> tuple[RunningCore, Path]:
            name = f"{request.node.name.partition('[')[0][5:]}"
            cgroup = stack.enter_context(own_cgroup(name, given=given))
            (cgroup / part).mkdir(exist_ok=True)
            core = RunningCore(*options, command=inside(cgroup / part, VMCORE))
            stack.callback(eventually, lambda: "populated 0" in read(cgroup / "cgroup.events"))
            stack.callback(core.close)
            return core, cgroup

        yield started


def read(file: Path) -> str:
    return file.read_text()


def engines(cgroup: Path) -> dict[str, set[int]]:
    """The processes in the cgroups of engines."""
    return {each.name: pids(each) for each in (cgroup / "engines").iterdir() if each.is_dir()}


@on_every_engine
def test_an_engine_has_a_cgroup_for_as_long_as_it_is(start: Start, engine: str) -> None:
    core, cgroup = start()
    with connect(str(core.socket)) as client:
        with client.create_session(engine) as session, client.create_session(engine):
            found = {each.name: each.engine_pid for each in client.sessions()}
            assert engines(cgroup) == {
                name.removeprefix("sessions/"): {pid} for name, pid in found.items()
            }
            os.kill(found[session.name], signal.SIGKILL)
            eventually(lambda: len(engines(cgroup)) == 1)
        assert engines(cgroup) == {}
        assert pids(cgroup / "core") == {core.process.pid}
        assert pids(cgroup) == set()
    core.stop()


def test_what_is_only_looked_at_is_in_no_cgroup_that_could_stay(start: Start) -> None:
    core, cgroup = start()
    with connect(str(core.socket)) as client:
        assert client.engines()
        with pytest.raises(Refused):
            client.create_session("perpetuum mobile")
        assert engines(cgroup) == {}
    core.stop()


def test_a_cgroup_that_was_not_given_is_left_alone(start: Start) -> None:
    core, cgroup = start(given=False)
    with connect(str(core.socket)) as client, client.create_session("soft"):
        (record,) = client.sessions()
        assert pids(cgroup) == {core.process.pid, record.engine_pid}
        assert [each for each in cgroup.iterdir() if each.is_dir()] == []
    assert "engines have no cgroups: core was given none" in core.log()
    core.stop()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
def test_the_next_core_goes_on_with_them(start: Start, how: signal.Signals) -> None:
    core, cgroup = start("--keep", "30")
    with connect(str(core.socket)) as client:
        with client.create_session("soft", priority=3, affinity=[0]) as session:
            before = engines(cgroup)
            keeper = keeper_of(core)
            assert pids(cgroup / "core") == {core.process.pid, keeper}
            for _ in range(2):
                core.process.send_signal(how)
                core.process.wait(20)
                release(cgroup)
                core.restart(signal.SIGCONT)
                assert pids(cgroup / "core") == {core.process.pid, keeper}
                assert engines(cgroup) == before
                (record,) = client.sessions()
                assert (record.priority, list(record.affinity)) == (3, [0])
            with client.create_session("soft") as another:
                assert engines(cgroup).keys() - before.keys() == {
                    another.name.removeprefix("sessions/")
                }
            assert session.name
        assert engines(cgroup) == {}
    core.stop()


def test_a_core_that_is_started_in_its_part_of_it(start: Start) -> None:
    """As by systemd's DelegateSubgroup=core: then no limit ever has to be lifted."""
    core, cgroup = start("--keep", "30", part="core")
    with connect(str(core.socket)) as client, client.create_session("soft"):
        before = engines(cgroup)
        assert len(before) == 1
        core.restart(signal.SIGKILL)
        assert engines(cgroup) == before
        assert pids(cgroup / "core") == {core.process.pid, keeper_of(core)}
    core.stop()


def test_a_core_that_was_killed_leaves_none_to_the_next(start: Start) -> None:
    core, cgroup = start()
    with connect(str(core.socket)) as client:
        client.create_session("soft")
        client.create_session("soft")
        assert len(engines(cgroup)) == 2
        core.kill()
        release(cgroup)
        core.restart(signal.SIGCONT)
        eventually(lambda: engines(cgroup) == {})
    core.stop()


def test_two_cores_do_not_divide_one_cgroup(start: Start) -> None:
    core, cgroup = start()
    other = RunningCore(command=inside(cgroup / "core", VMCORE))
    try:
        assert "another core has it" in other.log()
        for each in (core, other):
            with connect(str(each.socket)) as client, client.create_session("soft"):
                assert len(engines(cgroup)) == (each is core)
        assert pids(cgroup / "core") == {core.process.pid, other.process.pid}
        other.stop()
    finally:
        other.close()
    core.stop()


def threads_of(pid: int) -> set[tuple[int, frozenset[int]]]:
    """Nice values and CPUs of its threads, of which each engine has several from the start."""
    ids = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
    assert len(ids) > 1
    return {
        (os.getpriority(os.PRIO_PROCESS, each), frozenset(os.sched_getaffinity(each)))
        for each in ids
    }


@on_every_engine
def test_priority_and_affinity_hold_for_every_thread(engine: str) -> None:
    core = RunningCore()
    cpu = max(os.sched_getaffinity(0))
    try:
        with connect(str(core.socket)) as client:
            with client.create_session(engine, priority=7, affinity=[cpu, 4000]) as session:
                session.create_vcpu()
                (record,) = client.sessions()
                assert (record.priority, list(record.affinity)) == (7, [cpu])
                assert threads_of(record.engine_pid) == {(7, frozenset({cpu}))}
                told = subprocess.run(
                    [str(Path(sys.executable).parent / "vmm"), "sessions", "--json"],
                    env=os.environ | {"VMSESSION_SOCKET": str(core.socket)},
                    capture_output=True,
                    check=True,
                )
                (row,) = json.loads(told.stdout)
                assert (row["priority"], row["affinity"]) == (7, [cpu])
            with client.create_session(engine):
                (record,) = client.sessions()
                assert (record.priority, list(record.affinity)) == (0, [])
                nice = os.getpriority(os.PRIO_PROCESS, 0)
                mine = frozenset(os.sched_getaffinity(0))
                assert threads_of(record.engine_pid) == {(nice, mine)}
        core.stop()
    finally:
        core.close()


def test_policy_bounds_priority_and_affinity(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(
        """
        [[allow]]
        label = "elsewhere"
        cpus = "4000"
        [[allow]]
        priority = 5
        cpus = "0"
        engine_memory = "1 GiB"
        engine_cpu = 50
        """
    )
    core = RunningCore("--policy", str(tmp_path / "policy.toml"))
    try:
        with connect(str(core.socket)) as client:
            asked: list[tuple[str, dict[str, Any]]] = [
                ("DENIED", {"priority": 4}),
                ("DENIED", {"priority": 0}),
                ("DENIED", {"affinity": [0, 1]}),
                ("DENIED", {"label": "elsewhere"}),
                ("INVALID_ARGUMENT", {"priority": 20}),
                ("INVALID_ARGUMENT", {"affinity": range(5000)}),
            ]
            for reason, terms in asked:
                with pytest.raises(Refused, match=r"priority|CPUs|affinity") as refused:
                    client.create_session("soft", **terms)
                assert refused.value.reason == reason
            assert list(client.sessions()) == []
            with client.create_session("soft"):
                (record,) = client.sessions()
                assert (record.priority, list(record.affinity)) == (5, [0])
                assert threads_of(record.engine_pid) == {(5, frozenset({0}))}
        unmet = [
            line for line in core.log().splitlines() if "a limit of the policy does not" in line
        ]
        assert ["lacking='memory'" in line for line in unmet] == [True, False]
        assert ["lacking='cpu'" in line for line in unmet] == [False, True]
        core.stop()
    finally:
        core.close()


def limited(start: Start, tmp_path: Path, rule: str, controller: str) -> tuple[RunningCore, Path]:
    (tmp_path / "policy.toml").write_text(f"[[allow]]\n{rule}\n")
    core, cgroup = start("--policy", str(tmp_path / "policy.toml"), "--keep", "30")
    if controller not in read(cgroup / "engines/cgroup.subtree_control").split():
        core.stop()
        pytest.skip(f"this cgroup v2 hierarchy has no {controller} controller")
    return core, cgroup


def test_an_engine_that_takes_too_much_memory_ends_alone(start: Start, tmp_path: Path) -> None:
    core, _ = limited(start, tmp_path, 'engine_memory = "128 MiB"', "memory")
    with (
        connect(str(core.socket)) as client,
        client.create_ram(512 * MIB) as ram,
        client.create_session("soft"),
        client.create_session("soft") as session,
    ):
        session.attach(ram, 0)
        session.memory.write(0, FILL)
        vcpu = session.create_vcpu()
        vcpu.run()
        vcpu.wait()
        vcpu.registers.update({"cr0": 0x11, "rip": 0, "cs": FLAT_CODE, "ds": FLAT_DATA})
        vcpu.run()
        with pytest.raises(SessionEnded, match=f"out of memory: {LIMIT}"):
            vcpu.wait()
        with pytest.raises(Refused, match=LIMIT) as refused:
            session.attach(ram, 0)
        assert refused.value.reason == "ENGINE_DIED"
        assert len(list(client.sessions())) == 1
        told = [event.cause for event in client.history(session.name).events]
        assert told == ["CreateSession", f"engine ended: out of memory: {LIMIT}"]
    core.stop()


def test_limits_are_set_again_by_the_next_core(start: Start, tmp_path: Path) -> None:
    core, cgroup = limited(start, tmp_path, 'engine_memory = "128 MiB"', "memory")
    with connect(str(core.socket)) as client, client.create_session("soft"):
        (own,) = (each for each in (cgroup / "engines").iterdir() if each.is_dir())
        assert int(read(own / "memory.max")) == 128 * MIB
        core.kill()
        release(cgroup)
        assert not (own / "memory.max").exists()
        core.restart(signal.SIGCONT)
        assert int(read(own / "memory.max")) == 128 * MIB
    core.stop()


@pytest.mark.parametrize(
    ("rule", "file", "content"),
    [
        ("engine_cpu = 50", "cpu.max", "50000 100000"),
        ("priority = 7", "cpu.weight.nice", "7"),
        ("vcpus = 2", "pids.max", "10"),
        ('cpus = "0"', "cpuset.cpus", "0"),
    ],
)
def test_what_the_kernel_took(
    start: Start, tmp_path: Path, rule: str, file: str, content: str
) -> None:
    core, cgroup = limited(start, tmp_path, rule, file.partition(".")[0])
    with connect(str(core.socket)) as client, client.create_session("soft") as session:
        session.create_vcpu()
        own = cgroup / "engines" / session.name.removeprefix("sessions/")
        assert read(own / file).strip() == content
    core.stop()
