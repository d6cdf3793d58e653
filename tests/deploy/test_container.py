"""The image's recipe: what a parser and a reader of its rules can tell without a container runtime."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from dockerfile_parse import DockerfileParser

from tests.deploy.staging import DEPLOY, ROOT

RECIPE: Final = DEPLOY / "container" / "Containerfile"


class Step(NamedTuple):
    """An instruction, and the stage that it belongs to."""

    stage: int
    name: str
    value: str


@pytest.fixture(scope="module")
def steps() -> list[Step]:
    parser: Any = DockerfileParser(fileobj=BytesIO(RECIPE.read_bytes()))
    stage, found = -1, []
    for instruction in parser.structure:
        stage += instruction["instruction"] == "FROM"
        if instruction["instruction"] != "COMMENT":
            found.append(Step(stage, instruction["instruction"], instruction["value"]))
    return found


def values(steps: list[Step], name: str) -> list[str]:
    return [step.value for step in steps if step.name == name]


def test_only_instructions_that_every_builder_knows(steps: list[Step]) -> None:
    assert {step.name for step in steps} == {
        *("FROM", "LABEL", "RUN", "WORKDIR", "COPY", "USER", "VOLUME"),
        *("STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"),
    }


def test_both_stages_begin_with_a_pinned_image_of_no_registry(steps: list[Step]) -> None:
    images = [value.split()[0] for value in values(steps, "FROM")]
    assert images == ["debian:12-slim"] * 2


def test_the_compiler_stays_behind(steps: list[Step]) -> None:
    final = [step.value for step in steps if step.stage == 1 and step.name == "RUN"]
    assert not any(tool in line for line in final for tool in ("gcc", "make ", "-dev"))


def test_packages_leave_no_lists(steps: list[Step]) -> None:
    installing = [run for run in values(steps, "RUN") if "apt-get" in run]
    assert len(installing) == 2
    for run in installing:
        assert "--no-install-recommends" in run
        assert "rm -rf /var/lib/apt/lists/*" in run


def test_what_is_copied_is_there(steps: list[Step]) -> None:
    for copied in values(steps, "COPY"):
        *sources, _ = copied.split()
        if not sources[0].startswith("--from="):
            assert all((ROOT / source).exists() for source in sources), copied


def test_it_runs_as_a_user_with_a_number(steps: list[Step]) -> None:
    last = [step for step in steps if step.stage == 1]
    (user,) = values(last, "USER")
    uid, gid = map(int, user.split(":"))
    assert min(uid, gid) > 0
    after = [step.name for step in last][[step.name for step in last].index("USER") :]
    assert "RUN" not in after


def test_commands_need_no_shell(steps: list[Step]) -> None:
    """So that core is the first process, and gets the signals."""
    for name in ("ENTRYPOINT", "CMD", "VOLUME"):
        (value,) = values(steps, name)
        assert all(isinstance(word, str) for word in json.loads(value))
    (check,) = values(steps, "HEALTHCHECK")
    assert json.loads(check[check.index("[") :])[0] == "vmm"


def test_what_is_built_from_is_not_ignored() -> None:
    ignored = Path(f"{RECIPE}.dockerignore").read_text().splitlines()
    for needed in ("deploy", "docs", "proto", "core_service", "requirements.lock"):
        assert needed not in ignored
