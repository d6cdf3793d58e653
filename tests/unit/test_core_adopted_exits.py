"""Where a vCPU stands that ran under earlier cores: by what its engine owes them, and answers."""

from __future__ import annotations

import pytest

from core_service.engine.protocol import Exit, MalformedPacketError
from core_service.vcpu import Exits
from dataspace.vcpu_page import EXIT_SEQ_AT, HALF_BYTES, EngineHalf


def exit_number(sequence: int) -> Exit:
    half = EngineHalf(bytearray(HALF_BYTES))
    half.u32[EXIT_SEQ_AT // 4] = sequence
    return Exit(0, bytes(half.u8), b"")


@pytest.fixture
def exits() -> Exits:
    adopted = Exits("sessions/1/vcpus/0")
    adopted.adopt()
    return adopted


def test_an_exit_that_several_cores_asked_for(exits: Exits) -> None:
    for _ in range(3):
        exits.publish(exit_number(7))
    exits.settled()
    assert exits.standing == exit_number(7)


def test_exits_that_an_earlier_core_saw_already(exits: Exits) -> None:
    for sequence in 6, 7, 7:
        exits.publish(exit_number(sequence))
    exits.settled()
    assert exits.standing == exit_number(7)


def test_one_that_runs(exits: Exits) -> None:
    exits.publish(exit_number(6))  # an earlier core's
    exits.runs()
    exits.settled()
    assert exits.standing is None
    exits.publish(exit_number(7))
    assert exits.standing == exit_number(7)


def test_one_that_exits_while_its_engine_says_that_it_runs(exits: Exits) -> None:
    exits.publish(exit_number(7))
    exits.runs()
    exits.publish(exit_number(7))  # asked again
    exits.settled()
    assert exits.standing == exit_number(7)


def test_one_that_exits_between_the_two_questions(exits: Exits) -> None:
    exits.runs()
    exits.publish(exit_number(7))
    exits.settled()
    assert exits.standing == exit_number(7)


def test_one_that_never_ran(exits: Exits) -> None:
    exits.settled()
    assert exits.standing is None
    with pytest.raises(MalformedPacketError, match="which does not run"):
        exits.publish(exit_number(1))


def test_then_no_exit_comes_unasked(exits: Exits) -> None:
    exits.publish(exit_number(7))
    exits.settled()
    with pytest.raises(MalformedPacketError, match="which does not run"):
        exits.publish(exit_number(7))
    exits.run_asked()
    exits.publish(exit_number(8))
    assert exits.standing == exit_number(8)
