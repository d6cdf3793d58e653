"""The engines that every test here runs on, also compiled with sanitizers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core_service.engine.native import build
from core_service.engine.protocol import Transport
from tests import libx86emu
from tests.engine.harness import Engine, environment

VARIANTS = ("kvm", "soft", "x86emu", "kvm-sanitized", "soft-sanitized", "x86emu-sanitized")


def sanitizer_options(name: str) -> dict[str, str]:
    """Leaks are looked for where that works: it attaches to its own process, which an engine forbids to
    all but root, and the software CPU's library frees nothing at its end."""
    leaks = int(name == "kvm" and os.geteuid() == 0)
    return {
        "ASAN_OPTIONS": f"detect_leaks={leaks}:exitcode=99",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def require(name: str) -> None:
    """Skip where this machine cannot run the engine at all."""
    if name == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm cannot be opened")
    if name == "x86emu" and not libx86emu.present():
        pytest.skip("libx86emu3 is not installed")


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Compiles an engine with sanitizers, once."""
    directory = tmp_path_factory.mktemp("sanitized")

    def compiled(name: str) -> Path:
        engine = next(engine for engine in build.ENGINES if engine.name == name)
        target = directory / engine.executable
        return target if target.exists() else build.build(engine, directory, sanitize=True)

    return compiled


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
def spawn(variant: str, name: str, sanitized: Callable[[str], Path]) -> Callable[[], Engine]:
    """Starts the engine of this test."""
    require(name)
    if variant == name:
        executable, options = build.IN_TREE / f"vmsession-{name}", {}
    else:
        executable, options = sanitized(name), sanitizer_options(name)
    return lambda: Engine(executable, environment(name) | options)


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
