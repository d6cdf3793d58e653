"""Every method of every service, called with anything: core refuses with a reason, and serves others."""

from __future__ import annotations

import grpc
import pytest

from tests.hostile.arena import Arena
from tests.hostile.attackers import attack
from tests.hostile.budget import Budget
from tests.hostile.figures import Figures
from tests.integration.refusals import reason_of
from tests.integration.running_core import RunningCore

ATTACKERS = 2


def campaign(core: RunningCore, budget: Budget) -> Figures:
    """Two clients of two users do it."""
    figures = Figures("rpc", budget.seed)
    arena = Arena(core, figures)
    try:
        with arena.attacked() as witness:
            names = tuple(witness.names)
            figures.outcomes = attack(
                core, "tests.hostile.rpc_attacker", budget, [names] * ATTACKERS
            )
    finally:
        arena.close()
    figures.numbers["calls"] = figures.outcomes.total()
    return figures


METHODS = (
    "vmsession.v1.CoreService/GetInfo",
    "vmsession.v1.CoreService/KeepAlive",
    "vmsession.v1.VmSessionService/HandleExits",
    "grpc.health.v1.Health/Check",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_message_is_a_bad_request(core: RunningCore, method: str) -> None:
    with grpc.insecure_channel(f"unix:{core.socket}") as channel:
        call = channel.stream_stream(f"/{method}", None, None)(iter([b"\x0b"]), timeout=10)
        with pytest.raises(grpc.RpcError) as refused:
            list(call)
    assert reason_of(refused.value) == "INVALID_ARGUMENT"
    assert call.details().startswith("this is no such request: ")


def test_all_of_health_at_once(core: RunningCore) -> None:
    with grpc.insecure_channel(f"unix:{core.socket}") as channel:
        listing = channel.unary_unary("/grpc.health.v1.Health/List", None, None)
        assert b"vmsession.v1.CoreService" in listing(b"", timeout=10)


def test_calls_of_any_kind(core: RunningCore) -> None:
    figures = campaign(core, Budget.short(5))
    assert figures.outcomes["OK"] > 0
    assert figures.outcomes["INVALID_ARGUMENT"] > 0
    assert figures.outcomes["NOT_FOUND"] > 0


@pytest.mark.soak
def test_calls_of_any_kind_for_long(core: RunningCore, capsys: pytest.CaptureFixture[str]) -> None:
    figures = campaign(core, Budget.soak())
    with capsys.disabled():
        print(figures.publish())
