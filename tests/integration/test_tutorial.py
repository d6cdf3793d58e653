"""Every program of the tutorial prints what the tutorial says, on every engine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.engines import on_every_engine
from tests.integration.running_core import RunningCore, Stubs
from vmm_client import Connection, Session

TUTORIAL = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()
PROGRAMS = re.findall(
    r"^## ([^\n]*)\n(?:(?!^## ).)*?^```python\n(.*?)^```\n\n```text\n(.*?)^```",
    TUTORIAL,
    re.MULTILINE | re.DOTALL,
)


def test_every_program_is_here() -> None:
    assert len(PROGRAMS) == TUTORIAL.count("```python") == 4


@pytest.fixture(autouse=True)
def core_by_default(core: RunningCore, stubs: Stubs, monkeypatch: pytest.MonkeyPatch) -> None:
    """`connect()` finds this core; `stubs` proves afterwards that nothing is left."""
    monkeypatch.setenv("VMSESSION_SOCKET", str(core.socket))


@on_every_engine
@pytest.mark.parametrize("example", [pytest.param(rest, id=title) for title, *rest in PROGRAMS])
def test_a_program_prints_what_it_should(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    engine: str,
    example: list[str],
) -> None:
    create = Connection.create_session

    def create_session(connection: Connection) -> Session:
        return create(connection, engine)

    monkeypatch.setattr(Connection, "create_session", create_session)
    program, printed = example
    exec(compile(program, "tutorial.md", "exec"), {})
    assert capsys.readouterr().out == printed
