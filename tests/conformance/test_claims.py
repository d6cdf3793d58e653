"""The suite's last word: what engines claim, it has proved; and docs/engines.md says what they claim.

An engine's claim that no test stands for is a defect of the suite, or of the engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from vmsession.v1.core_pb2 import Engine

from tests.conformance.claims import claims_of, collected, excused, proved
from tests.conformance.engine_table import DEPENDS, DOCUMENT, claims_in

HERE = Path(__file__).parent


def test_every_claim_was_proved(engine: str, engines: dict[str, Engine]) -> None:
    """By a test that passed, or excused by what this machine lacks."""
    if not collected.issuperset(HERE.glob("test_*.py")):
        pytest.skip("only a part of the suite ran")
    claimed = claims_of(engines[engine].capabilities)
    assert sorted(claimed - proved[engine] - set(excused[engine])) == []


def test_the_document_tells_what_it_claims(engine: str, engines: dict[str, Engine]) -> None:
    """But for what depends on the host. `make table` writes it again."""
    claimed = claims_of(engines[engine].capabilities) - DEPENDS.get(engine, frozenset())
    assert claims_in(DOCUMENT.read_text())[engine] == claimed
