"""Runs that are refused, and streams that end at an awkward moment."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from vmsession.v1 import vcpu_pb2
from vmsession.v1 import vm_session_pb2 as pb

from core_service.engine.process import EngineFailedError, EngineProcess
from core_service.refusal import Refusal
from core_service.rpc import vcpu_calls
from core_service.settings import Settings
from dataspace.vcpu_page import mask
from tests.unit.core_in_process import InProcess, behaviours, in_process, open_fds, until

NAMES = ("good", "refuses_to_run", "exits_late")


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[InProcess]:
    """A core with engines that never exit, of which nothing must be left."""
    before = open_fds()
    running = in_process(monkeypatch, behaviours(tmp_path, *NAMES), Settings())
    yield running
    await running.must_be_empty()
    assert open_fds() == before


@pytest.fixture
async def lost() -> AsyncIterator[list[str]]:
    """What nobody caught."""
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(str(context)))
    yield told
    gc.collect()
    assert not told


def wanting(*wanted: str, data: bytes = b"") -> pb.RunRequest:
    return pb.RunRequest(reply=vcpu_pb2.Reply(wanted=wanted, data=data))


@pytest.mark.parametrize(
    ("engine", "refused"),
    [("good", wanting("rbx", data=bytes(257))), ("refuses_to_run", wanting("rbx"))],
)
async def test_a_refused_run_leaves_what_is_wanted(
    world: InProcess, engine: str, refused: pb.RunRequest
) -> None:
    session = await world.session(world.client(), engine)
    vcpu = await session.create_vcpu(0, page_transport=False)
    vcpu.wanted = mask(["rax"])
    with pytest.raises(Refusal):
        await vcpu_calls.run(session, vcpu, refused)
    assert vcpu.wanted == mask(["rax"])


@pytest.mark.parametrize("wanted", [["rax"] * 100_000, ["none", "rax"], ["x" * 100_000]])
async def test_wanted_registers_that_cannot_be(world: InProcess, wanted: Sequence[str]) -> None:
    session = await world.session(world.client())
    vcpu = await session.create_vcpu(0, page_transport=False)
    for call in (
        vcpu_calls.run(session, vcpu, wanting(*wanted)),
        vcpu_calls.get_state(session, vcpu, pb.GetVcpuStateRequest(wanted=wanted)),
    ):
        with pytest.raises(Refusal) as refused:
            await call
        assert refused.value.reason == "INVALID_ARGUMENT"
        assert refused.value.numbers["field"] == "wanted"
        assert len(str(refused.value)) < 300


async def silence() -> AsyncIterator[Any]:
    await asyncio.Event().wait()
    yield None


async def test_a_stream_that_is_cancelled_while_another_takes_over(
    world: InProcess, lost: list[str]
) -> None:
    session = await world.session(world.client())
    vcpu = await session.create_vcpu(0, page_transport=False)
    exits = vcpu_calls.handle_exits(session, vcpu, silence())
    following = asyncio.ensure_future(anext(exits))
    for _ in range(3):
        await asyncio.sleep(0)
    vcpu.exits.serve()
    await asyncio.sleep(0)  # the stream's wait ends with an error, which is not looked at yet
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    await exits.aclose()
    assert not lost


async def test_an_engine_that_greets_and_exits_too_late(
    world: InProcess, tmp_path: Path, lost: list[str]
) -> None:
    (kind,) = behaviours(tmp_path, "exits_late")
    engine = EngineProcess.spawn("late", kind.executable, {}, 1.0)
    with pytest.raises(EngineFailedError, match="did not start within 0 s"):
        await engine.greet(0)
    await until(lambda: not engine.running)
    await engine.stop()
    assert engine.died
    assert "malformed" in engine.died
    assert not lost
