"""The check of the log by a process of its own: it finds what a thread finds, and never stays behind."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from core_service.audit import AuditError
from core_service.audit.schema import Head, files_of
from core_service.verify import chain
from core_service.verify.chain import check_chain, checked
from tests.unit.test_audit_verify import EVENTS, write


@pytest.fixture(autouse=True)
def in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few the events are."""
    monkeypatch.setattr(chain, "AT_ONCE", 0)


@pytest.mark.parametrize("after", [0, 25])
async def test_a_whole_log_agrees(tmp_path: Path, after: int) -> None:
    head = write(tmp_path)
    assert await check_chain(tmp_path, after, head) == (EVENTS - after, head, [])


async def test_what_was_done_to_a_log_is_told(tmp_path: Path) -> None:
    head = write(tmp_path)
    files_of(tmp_path)[1].unlink()
    found = await check_chain(tmp_path, 0, head)
    assert found.discrepancies
    assert found == checked(tmp_path, 0, head)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import json; print(json.dumps('too deep')); raise SystemExit(3)", "too deep"),
        ("raise SystemExit(9)", "its check ended with status 9"),
    ],
)
async def test_a_check_that_fails_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, why: str
) -> None:
    monkeypatch.setattr(chain, "PYTHON", (sys.executable, "-c", program))
    with pytest.raises(AuditError) as raised:
        await check_chain(tmp_path, 0, Head(1, bytes(32)))
    assert raised.value.why == why


async def test_who_goes_away_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def noted(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        processes.append(start(*arguments, **options))
        return processes[0]

    monkeypatch.setattr(subprocess, "Popen", noted)
    monkeypatch.setattr(chain, "PYTHON", (sys.executable, "-c", "import signal; signal.pause()"))
    check = asyncio.ensure_future(check_chain(tmp_path, 0, Head(1, bytes(32))))
    await asyncio.sleep(0)  # it begins
    check.cancel()
    with suppress(asyncio.CancelledError):
        await check
    assert processes[0].returncode == -9
