"""The shim, compiled once, and a stage for each module that kills."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.killings import Stage
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


@pytest.fixture(scope="module")
def stage(shim_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A core with a keeper, a client and a bystander."""
    directory = tmp_path_factory.mktemp("stage")
    stage = Stage(Shim(shim_library, directory), directory)
    try:
        yield stage
        stage.stop()
    finally:
        stage.close()
