"""A vCPU that an earlier core made and could not tell of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core_service.refusal import Refusal
from core_service.session import Session
from core_service.settings import Settings
from tests.unit.core_in_process import behaviours, in_process


@pytest.fixture
async def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Session]:
    """One of a core in this process."""
    settings = Settings(audit_directory=tmp_path / "audit")
    world = in_process(monkeypatch, behaviours(tmp_path, "good"), settings)
    yield await world.session(world.client())
    await world.must_be_empty()


async def test_who_asks_again_gets_it_although_policy_allows_no_more(session: Session) -> None:
    made = await session.create_vcpu(0, page_transport=False)
    made.unclaimed = True
    session.vcpu_limit = 1
    assert await session.create_vcpu(0, page_transport=False) is made
    with pytest.raises(Refusal) as refused:
        await session.create_vcpu(1, page_transport=False)
    assert refused.value.reason == "OUT_OF_CAPS"
