"""The engines that every test here runs on, also compiled with sanitizers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from core_service.engine.native import build
from core_service.engine.protocol import Transport
from tests import libx86emu, sanitizers
from tests.engine.harness import Engine, environment
from tests.sanitizers import Sanitized

VARIANTS = ("kvm", "soft", "x86emu", "kvm-sanitized", "soft-sanitized", "x86emu-sanitized")


def require(name: str) -> None:
    """Skip where this machine cannot run the engine at all."""
    if name == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm cannot be opened")
    if name == "x86emu" and not libx86emu.present():
        pytest.skip("libx86emu3 is not installed")


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    """Which engine, and how it was compiled."""
    chosen: str = request.param
    return chosen


@pytest.fixture
def name(variant: str) -> str:
    """The engine's name."""
    return variant.split("-", maxsplit=1)[0]


@pytest.fixture
def spawn(variant: str, name: str, sanitized: Sanitized) -> Callable[..., Engine]:
    """Starts the engine of this test; what it is given goes into the engine's environment."""
    require(name)
    if variant == name:
        executable, options = build.IN_TREE / f"vmsession-{name}", {}
    else:
        executable, options = sanitized(name), sanitizers.options(name)
    return lambda **more: Engine(executable, environment(name) | options | more)


@pytest.fixture
def engine(spawn: Callable[[], Engine]) -> Iterator[Engine]:
    """An engine that has said hello. Its end must be in order."""
    with spawn() as started:
        started.hello()
        yield started
    assert started.status == 0


@pytest.fixture(params=list(Transport), ids=lambda transport: transport.name.lower())
def transport(request: pytest.FixtureRequest) -> Transport:
    """Both transports."""
    chosen: Transport = request.param
    return chosen
