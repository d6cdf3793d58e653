"""Every command of docs/audit.md prints what stands there, but for names, process numbers and times."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.integration.commands import vmm
from tests.integration.running_core import RunningCore, Stubs
from vmm_client import connect

DOC = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
COMMANDS = re.findall(
    r"^```sh\nvmm ([^\n]*)\n```\n\n```text\n(.*?)^```", DOC, re.MULTILINE | re.DOTALL
)
(PROGRAM,) = re.findall(r"^```python\n(.*?)^```", DOC, re.MULTILINE | re.DOTALL)

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
USER_AND_PROCESS = r"(?<=\t)\d+\t\d+(?=\t)|\d+:\d+:\d+"
NAME = r"(sessions|dataspaces)/[0-9a-z]+"
SPAN = r"(?<=\t)\d+ (s|min)(?=\t)"
LIMIT = r"(?<=\t0 of )\d+(?=\n)"  # of capabilities: a host's descriptors


class Past(NamedTuple):
    """A core, a moment at which memory lived, and the memory that is gone now."""

    core: RunningCore
    moment: datetime
    dataspace: str


@pytest.fixture
def past(core: RunningCore, stubs: Stubs) -> Iterator[Past]:
    with connect(str(core.socket)) as connection:
        with (
            connection.create_session("soft", label="web server") as session,
            connection.create_ram(64 << 20) as ram,
        ):
            session.attach(ram, gpa=0)
            session.create_vcpu()
            moment = datetime.now().astimezone()
        yield Past(core, moment, ram.name)


def masked(text: str) -> str:
    """Columns apart by a tab, and what differs from run to run by its kind."""
    text = re.sub(r" {2,}", "\t", text)
    for kind, pattern in (
        ("TIME", TIME),
        ("WHO", USER_AND_PROCESS),
        ("SPAN", SPAN),
        ("LIMIT", LIMIT),
    ):
        text = re.sub(pattern, kind, text)
    text = re.sub(NAME, r"\1/NAME", text)
    return re.sub(r"^(revision\t)?\d+(?=\tTIME|$)", r"\1REVISION", text, flags=re.MULTILINE)


def test_every_command_is_here() -> None:
    assert len(COMMANDS) == DOC.count("```text") == 4
    assert DOC.count("```sh") == 5


@pytest.mark.parametrize(
    ("command", "printed"), [pytest.param(*found, id=found[0]) for found in COMMANDS]
)
def test_a_command_prints_what_it_should(past: Past, command: str, printed: str) -> None:
    command = command.replace("last tuesday 14:00", past.moment.isoformat(" "))
    command = re.sub(r"dataspaces/\w+", past.dataspace, command)
    completed = vmm(*shlex.split(command), socket=past.core.socket)
    assert (completed.returncode, completed.stderr) == (0, "")
    assert masked(completed.stdout) == masked(printed)


def test_the_program_checks_an_export(past: Past) -> None:
    exported = vmm("audit", "export", socket=past.core.socket).stdout
    assert check(exported) == (0, "")
    lines = exported.splitlines(keepends=True)
    assert len(lines) > 10
    assert check("".join(lines[5:])) == (0, "")
    assert check("".join(lines[:5] + lines[6:]))[0] == 1
    status, said = check(exported.replace('"freed by its owner"', '"client ended"', 1))
    assert (status, said.split(" is not ")[1]) == (1, "what was recorded, or what was before it\n")


def check(exported: str) -> tuple[int, str]:
    completed = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM],
        input=exported,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return completed.returncode, completed.stderr
