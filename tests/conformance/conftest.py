"""The conformance suite: a real core, the public client library, every engine, both transports."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from vmsession.v1.core_pb2 import Engine

from core_service.engine.catalog import KINDS
from tests.conformance.claims import claims_of, collected, declared, proved, require
from tests.conformance.machine import Machine
from tests.conftest import expected
from tests.integration.conftest import core, stubs
from tests.integration.running_core import RunningCore
from vmm_client import Connection, connect

__all__ = ["core", "stubs"]

HERE = Path(__file__).parent
LAST = "test_claims.py"
TROUBLE = ("defect", "reclaiming failed", "Fatal error", "Traceback", "never retrieved")


@pytest.hookimpl(tryfirst=True)  # before tests are deselected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Claims are compared with what was proved: last of this directory."""
    if not config.option.keyword and not any("::" in argument for argument in config.args):
        collected.update(item.path for item in items)
    places = [number for number, item in enumerate(items) if item.path.parent == HERE]
    ordered = sorted((items[number] for number in places), key=lambda item: item.path.name == LAST)
    for place, item in zip(places, ordered, strict=True):
        items[place] = item


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note what the tests that passed have proved."""
    report = yield
    if report.when == "call" and report.passed and isinstance(item, pytest.Function):
        engine = item.funcargs.get("engine")
        if isinstance(engine, str):
            proved[engine] |= declared(item, "proves")
    return report


@pytest.fixture(scope="package")
def running() -> Iterator[RunningCore]:
    """One core for all of these tests, which must stop in order and without a complaint."""
    shared = RunningCore()
    try:
        yield shared
        shared.stop()
        assert [word for word in TROUBLE if word in shared.log()] == [], shared.log()
    finally:
        shared.close()


@pytest.fixture(scope="package")
def client(running: RunningCore) -> Iterator[Connection]:
    """A VMM's connection to it. Nothing of the VMM is left when all tests are over."""
    with connect(str(running.socket)) as connection:
        yield connection
        assert list(connection.sessions()) == []
        assert list(connection.records(alive_only=True)) == []


@pytest.fixture(scope="package")
def engines(client: Connection) -> dict[str, Engine]:
    """What core says of each engine."""
    return {engine.name: engine for engine in client.engines()}


@pytest.fixture(params=[kind.name for kind in KINDS])
def engine(request: pytest.FixtureRequest, engines: dict[str, Engine]) -> str:
    """An engine that runs here, and claims what the test is about."""
    told = engines[request.param]
    if not told.available:
        assert told.name not in expected(), told.unavailable_because
        pytest.skip(f"engine {told.name} does not run here: {told.unavailable_because}")
    require(told.name, claims_of(told.capabilities), declared(request.node, "proves", "needs"))
    return told.name


@pytest.fixture(params=["page", "stream"])
def transport(request: pytest.FixtureRequest) -> str:
    """Both ways of serving a vCPU."""
    chosen: str = request.param
    return chosen


@pytest.fixture
def machine(client: Connection, engine: str, transport: str) -> Iterator[Machine]:
    """A session with RAM at 0 and no vCPU yet. All books must agree on what the test made of it."""
    with client.create_session(engine) as session, client.create_ram(Machine.RAM) as ram:
        yield Machine(session, ram, stream=transport == "stream")
        assert list(client.verify().discrepancies) == []
