"""kill -9 of an engine at every step of what it is asked to do: its session ends, and says why; nothing
else does."""

from __future__ import annotations

import time

import pytest

from tests.faults.killings import Act, Stage
from tests.faults.operations import OPERATIONS, Operation
from vmm_client.errors import Refused, SessionEnded

WITHIN_SECONDS = 5.0  # an end is seen at once; the machine may be busy
ASKED = (
    "CreateSession",
    "CreateVcpu-page",
    "CreateVcpu-stream",
    "Attach",
    "Detach",
    "Detach-start",
    "Detach-middle",
    "FreeDataspace",
    "DeleteSession",
    "HandleExits",
)
KILLED = "killed by signal 9 (Killed)"


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if each.name in ASKED], ids=str)
def test_an_engine_is_killed_at_every_step(stage: Stage, operation: Operation) -> None:
    deeds, _ = stage.rehearse(operation, "engine")
    assert deeds
    killed = sum(kill_engine_at(stage, operation, deed) for deed in range(1, deeds + 1))
    assert killed, f"{operation} has {deeds} deeds"


def kill_engine_at(stage: Stage, operation: Operation, deed: int) -> bool:
    """Before that deed; False if there are fewer this time."""
    prepared = operation.prepare(stage.actor)
    last = stage.client.totals().revision
    stage.shim.arm("engine", deed)
    began = time.monotonic()
    act = Act(lambda: operation.act(stage.actor, prepared))
    assert act.over(WITHIN_SECONDS), stage.core.log()
    took = time.monotonic() - began
    killed = stage.shim.disarm("engine") >= deed
    assert took < WITHIN_SECONDS
    if act.error:
        assert killed
        must_tell_why(act.error)
    stage.actor.clean()
    stage.must_be(stage.base, f"{operation}, engine killed before deed {deed}")
    closed = [each for each in stage.client.events(last) if each.kind == "closed"]
    assert {each.cause for each in closed if each.subject.count("/") == 1} <= {
        f"engine ended: {KILLED}",
        "session deleted",
    }
    return killed


def must_tell_why(error: BaseException) -> None:
    if isinstance(error, SessionEnded):
        assert KILLED in str(error)
        return
    assert isinstance(error, Refused), repr(error)
    assert error.reason in {"ENGINE_DIED", "ENGINE_UNAVAILABLE", "NOT_FOUND"}, repr(error)
    if error.reason != "NOT_FOUND":  # over the fd channel the message alone tells
        why = error.metadata.get("why", error.message)
        assert why in {KILLED, "the session ended"}
