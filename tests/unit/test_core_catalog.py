"""Which engine a session gets."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from core_service.engine.catalog import KINDS
from core_service.refusal import Refusal
from core_service.settings import Settings
from tests.unit.core_in_process import behaviours, in_process


async def test_an_engine_that_is_no_whole_machine_is_had_by_its_name_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    good, old = behaviours(tmp_path, "good", "old")
    part = dataclasses.replace(good, whole=False)
    world = in_process(monkeypatch, (part, old), Settings())
    client = world.client()
    with pytest.raises(Refusal, match="'old'"):
        await world.session(client, "")
    assert (await world.session(client, "good")).engine.name == "good"
    await world.must_be_empty()


def test_only_x86emu_is_no_whole_machine() -> None:
    assert [kind.name for kind in KINDS if not kind.whole] == ["x86emu"]
