"""Engines go where core wants them before they do anything else, and have few descriptors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from core_service.engine import protocol
from core_service.engine.protocol import Transport, Type
from tests.engine.harness import Engine, EngineGoneError

Spawn = Callable[..., Engine]


def test_every_thread_has_the_priority_and_the_cpus(spawn: Spawn) -> None:
    cpu = max(os.sched_getaffinity(0))
    with spawn(VMSESSION_PRIORITY="7", VMSESSION_CPUS=f"{cpu},8191") as engine:
        engine.hello()
        engine.demand(
            lambda number: protocol.vcpu_packet(Type.CREATE_VCPU, number, 0, Transport.STREAM)
        )
        threads = [int(task.name) for task in Path(f"/proc/{engine.pid}/task").iterdir()]
        assert len(threads) > 2
        for thread in threads:
            assert os.getpriority(os.PRIO_PROCESS, thread) == 7
            assert os.sched_getaffinity(thread) == {cpu}
    assert engine.status == 0


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"VMSESSION_CPUS": "8192"}, "CPUs 8192: numbers below 8192, with commas"),
        ({"VMSESSION_CPUS": "1,,2"}, "CPUs 1,,2: numbers below 8192, with commas"),
        ({"VMSESSION_CPUS": "x"}, "CPUs x: numbers below 8192, with commas"),
        ({"VMSESSION_CPUS": "8191"}, "cannot keep to the CPUs 8191: Invalid argument"),
        ({"VMSESSION_CGROUP": "1"}, "cannot enter its cgroup: Bad file descriptor"),
    ],
)
def test_where_it_cannot_go_it_says_so(spawn: Spawn, variables: dict[str, str], why: str) -> None:
    with spawn(**variables) as engine, pytest.raises(EngineGoneError) as gone:
        engine.hello()
    assert str(gone.value) == why
    assert engine.status == 1


def test_an_engine_has_few_descriptors_and_locks_no_memory(engine: Engine) -> None:
    limits = Path(f"/proc/{engine.pid}/limits").read_text().splitlines()
    found = {line[:26].strip(): line[26:].split()[:2] for line in limits}
    assert found["Max open files"] == ["256", "256"]
    for what in ("locked memory", "core file size", "msgqueue size"):
        assert found[f"Max {what}"] == ["0", "0"]
