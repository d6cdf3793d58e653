"""Steps, breakpoints, NMI windows: what is asked of the engine, and what a DEBUG exit tells."""

from __future__ import annotations

import pytest

from dataspace.vcpu_page import DEBUG_STEP, ExitFlag, Reason, ReplyFlag
from tests.unit.client_scripted_engine import Answer, Owner, Record, Script, ScriptedEngine, vcpu_on
from vmm_client import Breakpoint, BreakpointKind
from vmm_client.errors import NotStarted, Refused, Unsupported
from vmm_client.vcpu import Vcpu

DEBUGGER = ("debug", "watch", "NMI_WINDOW")


def answers_of(*asked: object, features: tuple[str, ...] = DEBUGGER) -> list[Answer]:
    """What the engine is told when these are called at one exit after the other."""
    answers: list[Answer] = []

    def script() -> Script:
        for _ in asked:
            answers.append((yield Record(Reason.HLT)))
        yield Record(Reason.SHUTDOWN)

    with ScriptedEngine(script) as engine:
        vcpu = vcpu_on(engine, Owner(*features))
        exits = vcpu.exits()
        for call in asked:
            next(exits)
            assert callable(call)
            call(vcpu)
        next(exits)
        vcpu.close()
    return answers


def test_a_step_is_asked_for_once() -> None:
    stepping, plain = answers_of(Vcpu.step, lambda _: None)
    assert (stepping.flags, plain.flags) == (ReplyFlag.STEP, 0)


def test_an_nmi_window_is_asked_for_and_withdrawn() -> None:
    asking, withdrawing = answers_of(Vcpu.request_nmi_window, Vcpu.withdraw_window)
    assert (asking.flags, withdrawing.flags) == (ReplyFlag.NMI_WINDOW, ReplyFlag.WITHDRAW_WINDOW)


def test_breakpoints_travel_in_the_layout_of_dr7() -> None:
    def set_four(vcpu: Vcpu) -> None:
        vcpu.set_breakpoints(
            Breakpoint(0x1001),
            Breakpoint(0x2000, BreakpointKind.WRITE, 8),
            Breakpoint(0x3004, BreakpointKind.ACCESS, 4),
            Breakpoint(0x4002, BreakpointKind.WRITE, 2),
        )

    four, none, plain = answers_of(set_four, Vcpu.set_breakpoints, lambda _: None)
    assert four.flags == ReplyFlag.BREAKPOINTS
    assert four.breakpoints == [0x1001, 0x2000, 0x3004, 0x4002]
    assert four.control == 0x5F90_0055
    assert (none.flags, none.breakpoints, none.control) == (ReplyFlag.BREAKPOINTS, [0] * 4, 0)
    assert plain.flags == 0


@pytest.mark.parametrize(
    ("breakpoints", "why"),
    [
        ([Breakpoint(0)] * 5, "a vCPU has 4 breakpoints"),
        ([Breakpoint(1 << 64)], "0x10000000000000000: no 64-bit address"),
        ([Breakpoint(-1)], "no 64-bit address"),
        ([Breakpoint(0, size=4)], "on execution has size 1, not 4"),
        ([Breakpoint(0, BreakpointKind.WRITE, 3)], "1, 2, 4 or 8 bytes, not 3"),
        ([Breakpoint(0x1002, BreakpointKind.ACCESS, 4)], "0x1002: no 64-bit address aligned to 4"),
    ],
)
def test_a_breakpoint_that_cannot_be_is_refused_and_nothing_is_asked(
    breakpoints: list[Breakpoint], why: str
) -> None:
    def attempt(vcpu: Vcpu) -> None:
        with pytest.raises(ValueError, match=why):
            vcpu.set_breakpoints(*breakpoints)

    assert answers_of(attempt)[0].flags == 0


@pytest.mark.parametrize(
    ("ask", "features", "missing"),
    [
        (Vcpu.step, (), "debug"),
        (Vcpu.set_breakpoints, ("watch",), "debug"),
        (
            lambda vcpu: vcpu.set_breakpoints(Breakpoint(0, BreakpointKind.WRITE)),
            ("debug",),
            "watch",
        ),
        (Vcpu.request_nmi_window, ("debug",), "NMI_WINDOW"),
    ],
)
def test_an_engine_without_it_is_named(
    ask: object, features: tuple[str, ...], missing: str
) -> None:
    def attempt(vcpu: Vcpu) -> None:
        assert callable(ask)
        with pytest.raises(Unsupported, match=f"engine scripted has no {missing}") as refused:
            ask(vcpu)
        assert isinstance(refused.value, Refused)
        assert refused.value.reason == "UNSUPPORTED"
        assert "vmm doctor" in refused.value.hint

    assert answers_of(attempt, features=features)[0].flags == 0


def test_they_belong_to_a_stopped_vcpu() -> None:
    with ScriptedEngine(lambda: iter(())) as engine:  # type: ignore[arg-type, return-value]
        vcpu = vcpu_on(engine, Owner(*DEBUGGER))
        for ask in (Vcpu.step, Vcpu.set_breakpoints, Vcpu.request_nmi_window):
            with pytest.raises(NotStarted):
                ask(vcpu)
        vcpu.close()


@pytest.mark.parametrize(
    ("record", "stepped", "breakpoints", "text"),
    [
        (Record(Reason.DEBUG, detail=DEBUG_STEP), True, (), "DEBUG step"),
        (Record(Reason.DEBUG, detail=0b1010), False, (1, 3), "DEBUG breakpoint 1 and breakpoint 3"),
        (
            Record(Reason.DEBUG, ExitFlag.IP_VALID, ip=0x40, detail=DEBUG_STEP | 1),
            True,
            (0,),
            "DEBUG step and breakpoint 0 at 0x40",
        ),
        # the number of another reason means something else
        (Record(Reason.INTERNAL_ERROR, detail=DEBUG_STEP | 0xF), False, (), "INTERNAL_ERROR"),
    ],
)
def test_what_a_debug_exit_tells(
    record: Record, stepped: bool, breakpoints: tuple[int, ...], text: str
) -> None:
    def script() -> Script:
        yield record

    with ScriptedEngine(script) as engine:
        vcpu = vcpu_on(engine)
        exit_ = next(vcpu.exits())
        assert (exit_.stepped, exit_.breakpoints) == (stepped, breakpoints)
        assert str(exit_).startswith(text)
        vcpu.close()


def test_an_exit_is_readable_in_a_debugger() -> None:
    def script() -> Script:
        yield Record(Reason.PORT, address=0xE9, size=1, count=1, value=0x48)

    with ScriptedEngine(script) as engine:
        vcpu = vcpu_on(engine)
        assert repr(vcpu.exit) == "<exit 0 of sessions/t/vcpus/0: NONE>"
        vcpu.run()
        vcpu.wait()
        assert repr(vcpu.exit) == (
            "<exit 1 of sessions/t/vcpus/0: PORT out 0xe9 size 1 value 0x48>"
        )
        vcpu.close()


def test_the_exit_of_a_closed_vcpu_is_readable_too() -> None:
    def script() -> Script:
        yield Record(Reason.HLT, ExitFlag.IP_VALID)

    with ScriptedEngine(script) as engine:
        vcpu = vcpu_on(engine)
        vcpu.run()
        vcpu.wait()
        vcpu.close()
        assert repr(vcpu.exit) == "<exit 1 of sessions/t/vcpus/0, closed>"
