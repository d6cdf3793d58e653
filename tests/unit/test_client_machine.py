"""The machine's loop: interrupts offered, taken, refused and asked for; sleep, and its ends."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from dataspace.vcpu_page import WINDOW_SEQ_AT, ExitFlag, Injection, Reason
from tests.unit.client_scripted_engine import Answer, Owner, Record, Script, ScriptedEngine, vcpu_on
from vmm_client.boards.pc import PC, Ending
from vmm_client.errors import Unsupported
from vmm_client.machine import Machine

MIDDLE = ExitFlag.MID_INSTRUCTION
HALT = Record(Reason.HLT, flags=ExitFlag.IF)
POWER_OFF = Record(Reason.PORT, MIDDLE, 0x604, 0x2000 | 5 << 10, size=2, count=1)
NOTHING = 0
COM1_VECTOR = 0x34


def out(port: int, value: int, flags: int = 0) -> Record:
    return Record(Reason.PORT, flags | MIDDLE, port, value, size=1, count=1)


# The master at vectors 0x30, COM1 set to interrupt when something was typed.
SETUP = [
    out(port, value)
    for port, value in (
        *((0x20, 0x11), (0x21, 0x30), (0x21, 0x04), (0x21, 0x01)),
        *((0x3F9, 0x01), (0x3FC, 0x08)),
    )
]


class Bench:
    """A machine on a scripted engine: `exits` follow STARTUP and SETUP; `answers` are the replies to
    them. `pc` is there for the script."""

    def __init__(self, script: Callable[[Bench], Script], *features: str) -> None:
        self._script = script
        self._owner = Owner(*(features or ("interrupts",)))
        self.pc = PC(lambda _: None, wake=self._wake)

    def run(self, **registers: int) -> Ending:
        with ScriptedEngine(self._whole) as engine:
            self.engine = engine
            self.machine = Machine(vcpu_on(engine, self._owner), self.pc)
            return self.machine.run(registers)

    def _whole(self) -> Script:
        yield Record(Reason.STARTUP)
        for record in SETUP:  # noqa: UP028 - a list cannot be sent the answers
            yield record
        yield from self._script(self)

    def _wake(self) -> None:
        self.machine.wake()

    def type_key(self) -> None:
        assert self.pc.receive(b"k") == 1


def offered(answer: Answer) -> int:
    """The vector in a reply."""
    return answer.injection & 0xFF


def test_an_interrupt_that_is_taken_is_in_service() -> None:
    seen = []

    def script(bench: Bench) -> Script:
        bench.type_key()
        answer = yield out(0x80, 0, ExitFlag.IF)
        seen.append(offered(answer))
        answer = yield Record(
            Reason.PORT, MIDDLE, 0x80, 0, size=1, count=1, injection=Injection.TAKEN
        )
        seen.append(offered(answer))
        yield POWER_OFF

    bench = Bench(script)
    assert bench.run() is Ending.POWER_OFF
    assert seen == [COM1_VECTOR, NOTHING]
    assert bench.pc.pics.master.service == 1 << 4


def test_an_interrupt_that_is_not_taken_is_offered_again() -> None:
    seen = []

    def script(bench: Bench) -> Script:
        bench.type_key()
        answer = yield out(0x80, 0, ExitFlag.IF)
        seen.append(offered(answer))
        answer = yield Record(
            Reason.WINDOW,
            ExitFlag.IF | ExitFlag.INTERRUPTIBLE,
            injection=Injection.NOT_TAKEN,
        )
        seen.append(offered(answer))
        yield POWER_OFF

    bench = Bench(script)
    assert bench.run() is Ending.POWER_OFF
    assert seen == [COM1_VECTOR, COM1_VECTOR]
    assert bench.pc.pics.master.service == 0


def test_with_interrupts_off_a_window_is_asked_for_once() -> None:
    seen = []

    def script(bench: Bench) -> Script:
        bench.type_key()
        for _ in range(3):
            answer = yield out(0x80, 0)
            seen.append((offered(answer), bench.engine.counter(WINDOW_SEQ_AT)))
        yield POWER_OFF

    assert Bench(script).run() is Ending.POWER_OFF
    # One request is that of the key.
    assert seen == [(NOTHING, 2)] * 3


def test_an_engine_that_takes_what_nobody_offered_changes_nothing() -> None:
    def script(_bench: Bench) -> Script:
        yield Record(Reason.WINDOW, ExitFlag.IF, injection=Injection.TAKEN)
        yield POWER_OFF

    bench = Bench(script)
    assert bench.run() is Ending.POWER_OFF
    assert bench.pc.pics.master.service == 0


def test_a_key_wakes_a_guest_that_sleeps() -> None:
    seen = []

    def script(bench: Bench) -> Script:
        typist = threading.Thread(target=bench.type_key)
        typist.start()
        answer = yield HALT
        seen.append(offered(answer))
        typist.join()
        yield POWER_OFF

    assert Bench(script).run() is Ending.POWER_OFF
    assert seen == [COM1_VECTOR]


def test_who_leaves_need_not_wait_for_the_guest() -> None:
    def script(bench: Bench) -> Script:
        bench.machine.leave()
        yield HALT

    assert Bench(script).run() is Ending.LEFT


def test_a_halt_with_interrupts_off_ends_it() -> None:
    def script(_bench: Bench) -> Script:
        yield Record(Reason.HLT)

    assert Bench(script).run() is Ending.HALTED


def test_an_engine_without_interrupts_runs_a_guest_until_a_device_has_one() -> None:
    def script(bench: Bench) -> Script:
        yield out(0xE9, 1)
        bench.type_key()
        yield HALT

    with pytest.raises(Unsupported, match="engine scripted has no interrupts"):
        Bench(script, "paging").run()


def test_an_engine_without_a_register_that_the_guest_is_entered_with_is_named() -> None:
    def script(_: Bench) -> Script:
        yield HALT

    with pytest.raises(Unsupported, match="engine scripted has no efer2"):
        Bench(script).run(efer2=1)
