"""Quota that clients share: exact to the last page, bounded, and nobody else's business."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from vmsession.v1 import audit_pb2

from core_service import dataspaces
from core_service.identity import Identity
from core_service.refusal import Refusal
from core_service.rpc import interceptor
from core_service.rpc.audit_totals import totals
from core_service.settings import Settings
from dataspace.errors import DataspaceError, InvalidTransition, OutOfCaps, OutOfRam
from dataspace.vcpu_page import PAGE_BYTES
from tests.unit.core_in_process import PAGE, InProcess, behaviours, in_process, until

RAM = 100 * PAGE
SESSIONS = 3


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[InProcess]:
    """A core with little to give."""
    settings = Settings(
        ram=RAM,
        client_ram=RAM,
        sessions_per_user=SESSIONS,
        audit_directory=tmp_path / "audit",
    )
    running = in_process(monkeypatch, behaviours(tmp_path, "good", "brief"), settings)
    yield running
    await running.must_be_empty()


async def test_a_held_page_leaves_its_session_when_no_quota_is_left(world: InProcess) -> None:
    client = world.client()
    session = await world.session(client)
    session.account.upgrade(ram=PAGE_BYTES)
    vcpu = await session.create_vcpu(0, page_transport=True)
    assert vcpu.page
    fd = vcpu.page.memory.open(writable=True)
    world.dataspace(world.client(), RAM - PAGE_BYTES)
    await world.core.close_session(session, "test")
    assert world.core.ledger.totals().held_bytes == PAGE_BYTES
    assert client.account.used.ram == 0
    other = world.client()
    with pytest.raises(OutOfRam):
        world.dataspace(other)
    os.close(fd)
    world.core.dataspaces.probe()
    assert world.core.users.root.used.ram == RAM - PAGE_BYTES
    world.dataspace(other)


async def test_sessions_of_a_user_are_bounded(world: InProcess) -> None:
    """Each is a process of core's, so clients of one user share the bound."""
    clients = [world.client() for _ in range(SESSIONS + 1)]
    outcomes = await asyncio.gather(*map(world.session, clients), return_exceptions=True)
    (refused,) = (outcome for outcome in outcomes if isinstance(outcome, Refusal))
    assert refused.reason == "OUT_OF_CAPS"
    assert refused.numbers == {"asked": 1, "used": SESSIONS, "limit": SESSIONS}
    await world.session(world.client(uid=1001))
    first = next(iter(world.core.sessions.values()))
    await world.core.close_session(first, "test")
    await world.session(clients[-1])


async def test_sessions_that_do_not_start_do_not_count(world: InProcess) -> None:
    client = world.client()
    for _ in range(SESSIONS + 1):
        with pytest.raises(Refusal) as refused:
            await world.session(client, "none")
        assert refused.value.reason == "ENGINE_UNAVAILABLE"


async def test_a_session_may_not_have_more_quota_than_its_client(world: InProcess) -> None:
    client = world.client()
    create = world.core.create_session
    with pytest.raises(OutOfRam):
        await create(client, "", "good", (1 << 64) - 1, 0)
    with pytest.raises(OutOfCaps):
        await create(client, "", "good", 0, (1 << 64) - 1)
    assert not client.sessions


@pytest.mark.parametrize("uid", [1000, 1001])
async def test_what_others_use_is_not_told(world: InProcess, uid: int) -> None:
    world.dataspace(world.client(uid=1000), RAM - PAGE)
    with pytest.raises(OutOfRam) as refused:
        world.dataspace(world.client(uid), 2 * PAGE)
    told = interceptor.refusal_of(refused.value, "method")
    assert told.reason == "OUT_OF_RAM"
    assert told.numbers == {"asked": 2 * PAGE}
    assert str(RAM - PAGE) not in str(told)


@pytest.mark.parametrize("error", [InvalidTransition("dataspaces/1", "attached", "is held")])
def test_an_error_that_no_method_documents_is_a_defect(error: DataspaceError) -> None:
    told = interceptor.refusal_of(error, "method")
    assert told.reason == "INTERNAL"


async def test_held_memory_is_probed_in_turns(
    world: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who holds very many does not keep core busy, nor keep others' memory charged for ever."""
    monkeypatch.setattr(dataspaces, "PROBES_AT_ONCE", 2)
    monkeypatch.setattr(dataspaces, "PROBE_INTERVAL", 0.001)
    client = world.client()
    held = [world.dataspace(client) for _ in range(5)]
    fds = [dataspace.memory.open(writable=True) for dataspace in held]
    for dataspace in held:
        assert await world.core.dataspaces.end(dataspace, "test")
    os.close(fds.pop())
    await until(lambda: world.core.ledger.totals().held == 4)
    for fd in fds:
        os.close(fd)
    await until(lambda: world.core.ledger.totals().held == 0)


async def test_clients_that_cannot_be_told_apart_are_summed_up(world: InProcess) -> None:
    """Those in another PID namespace have no pid here."""
    core, anonymous = world.core, Identity(1000, 1000, 0, 0)
    for number in range(2):
        client = core.clients.connected(f"anonymous-{number}", anonymous, None)
        world.dataspace(client, PAGE)
    told = await totals(core, client, audit_pb2.GROUPING_CLIENT, lambda: 0)
    (group,) = told.groups
    assert (group.group, group.live, group.live_bytes) == ("1000:1000:0", 2, 2 * PAGE)
    assert (group.ram.used, group.ram.limit) == (2 * PAGE, 2 * RAM)
    assert (group.capabilities.used, group.capabilities.peak) == (2, 2)
