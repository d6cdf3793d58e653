"""kill -9 of a client at every step of what it asks for: nothing of it is left, nobody else notices."""

from __future__ import annotations

import signal
import sys
from random import Random

import pytest
from vmsession.v1.audit_pb2 import Event

from tests.faults.killings import Stage
from tests.faults.operations import OPERATIONS, Operation

FEWEST = 8  # deeds of any of them, by far
each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=str)


def kill_client_at(stage: Stage, operation: Operation, deed: int) -> int:
    """Before that deed, or after the answer if there are fewer. How many deeds it did."""
    command = (sys.executable, "-m", "tests.faults.client")
    before = stage.client.totals().revision
    client = stage.shim.client(*command, stage.core.socket, operation, stage.actor.rom)
    try:
        assert client.stdin
        assert client.stdout
        assert client.stdout.readline() == "prepared\n", operation
        stage.shim.arm("client", deed)
        client.stdin.write("go on\n")
        client.stdin.flush()
        done = client.stdout.readline()
        deeds = stage.shim.disarm("client")
        if not done:
            assert client.wait(10) == -signal.SIGKILL
            assert deeds >= deed
    finally:
        client.kill()
        client.communicate()
    stage.must_be(stage.base, f"{operation}, client killed before deed {deed}")
    ended = [each for each in stage.client.events(before, kinds=["closed"]) if is_client(each)]
    assert [each.cause for each in ended] == ["client process ended"]
    return deeds


def is_client(event: Event) -> bool:
    return event.subject.startswith("clients/")


@pytest.mark.parametrize("operation", OPERATIONS[::2], ids=str)
def test_a_client_is_killed_at_some_step(stage: Stage, operation: Operation) -> None:
    assert kill_client_at(stage, operation, Random(f"{operation}").randint(1, FEWEST))


@pytest.mark.soak
@each_operation
def test_a_client_is_killed_at_every_step(stage: Stage, operation: Operation) -> None:
    deeds = kill_client_at(stage, operation, 0)
    for deed in range(1, deeds + 1):
        kill_client_at(stage, operation, deed)
    print(f"\n{operation}: client killed before each of {deeds} deeds")
