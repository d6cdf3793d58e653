"""kill -9 of core at every step of every operation, with a keeper: the next core goes on, the client's
call is carried out once, and nobody else notices."""

from __future__ import annotations

import signal
from random import Random

import pytest

from tests.faults.killings import Stage
from tests.faults.operations import OPERATIONS, Operation

AT_SOME = 2
both_roles = pytest.mark.parametrize("role", ["core", "log"])
each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=str)


@each_operation
def test_core_is_killed_at_some_steps(stage: Stage, operation: Operation) -> None:
    deeds, expected = stage.rehearse(operation, "core")
    assert deeds >= AT_SOME
    for deed in Random(f"{operation}").sample(range(1, deeds + 1), AT_SOME):
        stage.kill_core_at(operation, "core", deed, expected)


@pytest.mark.parametrize("operation", OPERATIONS[::6], ids=str)
def test_core_is_killed_while_its_log_is_written(stage: Stage, operation: Operation) -> None:
    deeds, expected = stage.rehearse(operation, "log")
    stage.kill_core_at(operation, "log", Random(f"{operation}").randint(1, deeds), expected)


def test_the_core_after_the_next_gives_the_same_answers(stage: Stage) -> None:
    """What each of them took over it leaves to the one after it."""
    session = stage.actor.session()
    stage.repeats.forget()
    session.create_vcpu()
    for _ in range(3):
        stage.core.restart(signal.SIGKILL)
        assert stage.repeats.must_give_the_same()
    stage.clean()


@pytest.mark.soak
@each_operation
@both_roles
def test_core_is_killed_at_every_step(stage: Stage, operation: Operation, role: str) -> None:
    deeds, expected = stage.rehearse(operation, role)
    for deed in range(1, deeds + 2):
        stage.kill_core_at(operation, role, deed, expected)
    print(f"\n{operation}: core killed before each of {deeds} deeds of {role}, and after them")
