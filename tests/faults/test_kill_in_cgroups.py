"""kill -9 of core while it makes and ends sessions whose engines have cgroups: there is one for each
session in the end, with its engine in it, and none else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.cgroup2 import own_cgroup, pids
from tests.faults.killings import Stage
from tests.faults.operations import OPERATIONS, Operation
from tests.faults.shim import Shim
from tests.integration.waiting import eventually

SHORT = 3
changes_sessions = pytest.mark.parametrize(
    "operation", [each for each in OPERATIONS if "Session" in str(each)], ids=str
)


class CgroupStage(Stage):
    """A stage whose core has a cgroup to divide."""

    def __init__(self, shim: Shim, directory: Path, given: Path) -> None:
        self._engines = given / "engines"
        (given / "core").mkdir()  # started there, core needs nobody to lift its limits
        super().__init__(shim, directory, given / "core")

    def must_be(self, expected: dict[str, object], told: str) -> None:
        super().must_be(expected, told)
        eventually(lambda: self._found() == self._wanted(), lambda: f"{told}: {self._found()}")

    def _found(self) -> dict[str, set[int]]:
        return {each.name: pids(each) for each in self._engines.iterdir() if each.is_dir()}

    def _wanted(self) -> dict[str, set[int]]:
        sessions = {each.name: each.engine_pid for each in self.client.sessions()}
        return {name.removeprefix("sessions/"): {pid} for name, pid in sessions.items()}


@pytest.fixture(scope="module")
def stage(shim_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CgroupStage]:
    directory = tmp_path_factory.mktemp("stage")
    with own_cgroup("kill", given=True) as cgroup:
        stage = CgroupStage(Shim(shim_library, directory), directory, cgroup)
        try:
            yield stage
            stage.stop()
        finally:
            stage.close()
            eventually(lambda: "populated 0" in (cgroup / "cgroup.events").read_text())


@changes_sessions
def test_core_is_killed_at_some_steps(stage: CgroupStage, operation: Operation) -> None:
    deeds, expected = stage.rehearse(operation, "core")
    chance = Random(str(operation))
    for deed in chance.sample(range(1, deeds + 1), min(SHORT, deeds)):
        stage.kill_core_at(operation, "core", deed, expected)


@pytest.mark.soak
@changes_sessions
def test_core_is_killed_at_every_step(stage: CgroupStage, operation: Operation) -> None:
    deeds, expected = stage.rehearse(operation, "core")
    for deed in range(1, deeds + 2):
        stage.kill_core_at(operation, "core", deed, expected)
    print(f"\n{operation}: core killed before each of {deeds} deeds, and after them")
