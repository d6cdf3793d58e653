"""The shim, compiled once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.shim import Shim, build
from tests.integration.conftest import core

__all__ = ["core"]


@pytest.fixture(scope="session")
def shim_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it is."""
    return build(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def shim(shim_library: Path, tmp_path: Path) -> Shim:
    """One for the cores of a test."""
    return Shim(shim_library, tmp_path)
