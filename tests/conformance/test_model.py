"""One vCPU against its model: random steps from several threads, on every engine and transport. The long
form is in `test_soak.py`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dataspace.vcpu_page import Injection, InjectType, Reason
from tests.conformance.stress.driver import Driver
from tests.conformance.stress.guest import COMMAND_PORT, OUT_PORT, Command, Tally
from tests.conformance.stress.model import Answer, DisagreementError, Meanwhile, Model, Seen
from tests.conformance.stress.seed import seed
from vmm_client import Connection

EPISODES = {"page": 30, "stream": 10}
ROUNDS = 100

ASKS = Seen(
    reason=Reason.PORT,
    address=COMMAND_PORT,
    is_read=True,
    bytes=1,
    value=0,
    injection=Injection.NONE,
    interruptible=False,
    interrupt_flag=False,
    ip=None,
    pauses_acknowledged=0,
    halted=False,
)
PAUSED = replace(ASKS, reason=Reason.PAUSED, address=0, is_read=False, bytes=0)


def test_an_engine_agrees_with_the_model(client: Connection, engine: str, transport: str) -> None:
    with Driver(client, engine, seed(default=1), stream=transport == "stream") as driver:
        episodes = EPISODES[transport]
        for _ in range(episodes):
            driver.episode(ROUNDS)
        seen = driver.figures
    assert seen["rounds"] == episodes * ROUNDS
    for happened in ("PORT", "MMIO", "HLT", "PAUSED", "COMPLETED", "INVALID_STATE", "commands"):
        assert seen[happened] > episodes, f"{happened} came {seen[happened]} times"


def model() -> Model:
    """One whose guest asks for its first command."""
    begun = Model(halt_ip=0x1041)
    begun.run(Answer())
    begun.exit(ASKS, Meanwhile())
    return begun


def test_the_model_agrees_with_what_is_right() -> None:
    right = model()
    right.pauses.ask(1)
    right.run(Answer(value=Command.OUT))
    right.exit(replace(PAUSED, pauses_acknowledged=1), Meanwhile(paused=1))
    right.run(Answer())
    right.exit(
        replace(ASKS, address=OUT_PORT, is_read=False, value=1, pauses_acknowledged=1),
        Meanwhile(paused=2),
    )
    assert right.pauses.must
    right.check(Tally(1, 0, 0, 0, 0, 0, 0, 0, 0))


def test_the_model_finds_a_pause_that_is_lost() -> None:
    lost = model()
    lost.pauses.ask(1)
    lost.run(Answer(value=Command.WORK))
    with pytest.raises(DisagreementError, match="a pause is due"):
        lost.exit(ASKS, Meanwhile(paused=1))


def test_the_model_finds_a_pause_that_nobody_asked_for() -> None:
    invented = model()
    invented.run(Answer(value=Command.WORK))
    with pytest.raises(DisagreementError, match="nobody asked"):
        invented.exit(PAUSED, Meanwhile())


def test_the_model_finds_an_extra_run() -> None:
    extra = model()
    extra.run(Answer(value=Command.OUT))
    with pytest.raises(DisagreementError, match="out is due"):
        extra.exit(ASKS, Meanwhile())


def test_the_model_finds_an_event_that_comes_twice() -> None:
    twice = model()
    twice.run(Answer(value=Command.WORK, inject=InjectType.NMI))
    twice.exit(replace(ASKS, injection=Injection.TAKEN), Meanwhile())
    with pytest.raises(DisagreementError, match="'nmis': 2"):
        twice.check(Tally(2, 0, 0, 0, 2, 0, 0, 0, 0))


def test_the_model_finds_an_interrupt_that_is_taken_with_the_flag_clear() -> None:
    masked = model()
    masked.run(Answer(value=Command.WORK, inject=InjectType.INTERRUPT))
    with pytest.raises(DisagreementError, match="must be NOT_TAKEN"):
        masked.exit(replace(ASKS, injection=Injection.TAKEN), Meanwhile())
