"""What engines claim to do, and what tests prove of it.

A claim is a word as in `register:rax`, `exit:PORT` or `feature:debug`: every name in an engine's
`Capabilities` is one. A test says by `proves` which claims it stands for, and by `needs` what else it
uses; it is skipped on an engine that does not make them, and fails on one that makes them and cannot."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Final, NoReturn

import pytest
from vmsession.v1.core_pb2 import Capabilities

proved: Final[defaultdict[str, set[str]]] = defaultdict(set)  # by engine, of the tests that passed
excused: Final[defaultdict[str, dict[str, str]]] = defaultdict(dict)  # claim and reason

collected: Final[set[Path]] = set()  # the test files of this run, of which no test was named


def proves(*claims: str) -> pytest.MarkDecorator:
    """This test passes only where these claims are true."""
    return pytest.mark.proves(*claims)


def needs(*claims: str) -> pytest.MarkDecorator:
    """This test uses these, but does not show that they work."""
    return pytest.mark.needs(*claims)


def claims_of(capabilities: Capabilities) -> frozenset[str]:
    """All that an engine claims."""
    return frozenset(
        [f"register:{name}" for name in capabilities.registers]
        + [f"exit:{name}" for name in capabilities.exit_reasons]
        + [f"feature:{name}" for name in capabilities.features]
    )


def declared(item: pytest.Item, *kinds: str) -> set[str]:
    """The claims that a test's marks of these kinds name."""
    return {claim for kind in kinds for mark in item.iter_markers(kind) for claim in mark.args}


def require(engine: str, made: frozenset[str], wanted: set[str]) -> None:
    """Skip the test unless the engine makes these claims."""
    missing = sorted(wanted - made)
    if missing:
        pytest.skip(f"engine {engine} does not claim {', '.join(missing)}")


def excuse(engine: str, claim: str, reason: str) -> NoReturn:
    """Skip the test: this machine does not let the engine show that its claim is true."""
    excused[engine][claim] = reason
    pytest.skip(f"{claim}: {reason}")
