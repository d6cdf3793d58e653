"""The vCPU of the client library against a scripted engine: replies, waiting, and the ends of it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from dataspace.registers import Segment
from dataspace.vcpu_page import (
    KICK_SEQ_AT,
    PAUSE_SEQ_AT,
    WINDOW_SEQ_AT,
    ExitFlag,
    Reason,
    ReplyFlag,
    mask,
)
from tests.unit.client_scripted_engine import (
    Answer,
    Owner,
    Record,
    Script,
    ScriptedEngine,
    blank_page,
    vcpu_on,
)
from vmm_client import errors
from vmm_client.page import Page
from vmm_client.vcpu import Vcpu

ONES = 0xFFFFFFFFFFFFFFFF
MID_READ = ExitFlag.READ | ExitFlag.MID_INSTRUCTION
CODE = Segment(0x8, 0xA9B, 0xFFFFFFFF, 0)


@contextmanager
def answers_to(*records: Record, owner: Owner | None = None) -> Iterator[tuple[Vcpu, list[Answer]]]:
    """A vCPU that starts up and gives these exits, and the list where its answers arrive."""
    answers: list[Answer] = []

    def script() -> Script:
        for record in (Record(Reason.STARTUP), *records, Record(Reason.SHUTDOWN)):
            answers.append((yield record))

    with ScriptedEngine(script) as engine:
        vcpu = vcpu_on(engine, owner)
        yield vcpu, answers
        vcpu.close()


def to_the_end(vcpu: Vcpu) -> list[Reason]:
    reasons = []
    for exit_ in vcpu.exits():
        reasons.append(exit_.reason)
        if exit_.reason is Reason.SHUTDOWN:
            break
    return reasons


def test_exits_come_in_order_and_a_plain_answer_says_run_on() -> None:
    with answers_to(Record(Reason.HLT), Record(Reason.PAUSED)) as (vcpu, answers):
        assert to_the_end(vcpu) == [Reason.STARTUP, Reason.HLT, Reason.PAUSED, Reason.SHUTDOWN]
        assert [answer.flags for answer in answers] == [0, 0, 0]
        assert all(answer.charged == {} and answer.written == [] for answer in answers)


def test_a_read_gets_its_value_and_the_next_one_floats_high() -> None:
    read = Record(Reason.PORT, MID_READ, 0x60, size=1, count=1)
    with answers_to(read, read) as (vcpu, answers):
        exits = vcpu.exits()
        next(exits)
        next(exits).reply(0x5A)
        next(exits)
        next(exits)
        assert [answer.value for answer in answers] == [ONES, 0x5A, ONES]


def test_a_wide_read_gets_its_data_and_the_next_one_floats_high() -> None:
    read = Record(Reason.PORT, MID_READ, 0x1F0, size=2, count=6)
    with answers_to(read, read) as (vcpu, answers):
        exits = vcpu.exits()
        next(exits)
        next(exits).reply_data(bytes(range(12)))
        next(exits)
        next(exits)
        assert answers[1].data[:12] == bytes(range(12))
        assert answers[2].data == b"\xff" * 256


def test_an_msr_that_nobody_answers_faults_and_one_that_is_answered_does_not() -> None:
    rdmsr = Record(Reason.MSR, MID_READ, 0x1B, size=8, count=1)
    wrmsr = Record(Reason.MSR, ExitFlag.MID_INSTRUCTION, 0x1B, 5, 8, 1)
    with answers_to(rdmsr, rdmsr, wrmsr, wrmsr) as (vcpu, answers):
        exits = vcpu.exits()
        next(exits)
        next(exits)
        next(exits).reply(7)
        next(exits)
        next(exits).accept()
        next(exits)
        assert [answer.flags for answer in answers] == [
            0,
            ReplyFlag.FAULT,
            0,
            ReplyFlag.FAULT,
            0,
        ]
        assert answers[2].value == 7


def test_a_fault_is_no_answer_to_anything_but_an_msr() -> None:
    with answers_to(Record(Reason.HLT)) as (vcpu, _):
        exits = vcpu.exits()
        next(exits)
        with pytest.raises(ValueError, match="not to STARTUP"):
            vcpu.exit.fault()


def test_registers_and_injection_travel_with_one_reply_only() -> None:
    with answers_to(Record(Reason.HLT), Record(Reason.HLT)) as (vcpu, answers):
        exits = vcpu.exits()
        next(exits)
        vcpu.registers.update({"rip": 0x1000, "cs": CODE})
        vcpu.inject(0x20)
        vcpu.exit.complete()
        next(exits)
        vcpu.inject_exception(14, 0x2)
        next(exits)
        next(exits)
        assert answers[0].charged == {"rip": 0x1000, "cs": CODE}
        assert answers[0].injection == 0x80000020
        assert answers[0].flags == ReplyFlag.COMPLETE
        assert (answers[1].injection, answers[1].error) == (0x80000B0E, 2)
        assert answers[1].charged == {}
        assert answers[2].injection == 0


def test_a_bad_vector_is_refused_and_nothing_is_injected() -> None:
    with answers_to() as (vcpu, answers):
        exits = vcpu.exits()
        next(exits)
        with pytest.raises(ValueError, match=r"vector 256 is not within 0..255"):
            vcpu.inject(256)
        next(exits)
        assert answers[0].injection == 0


def test_wanted_registers_stay_wanted() -> None:
    with answers_to(Record(Reason.HLT)) as (vcpu, answers):
        exits = vcpu.exits(wanted=("rip", "cs", "fpu"))
        for _ in range(3):
            next(exits)
        assert [answer.wanted for answer in answers] == [mask(("rip", "cs", "fpu"))] * 2


def test_fetch_asks_at_this_exit_and_keeps_what_was_answered() -> None:
    fetched = Record(Reason.HLT, registers={"rax": 42})
    with answers_to(Record(Reason.HLT), fetched) as (vcpu, answers):
        exits = vcpu.exits(wanted=["rip"])
        next(exits)
        halted = next(exits)
        vcpu.inject(0x30)
        vcpu.registers.rbx = 9
        halted.complete()
        assert vcpu.fetch("rax").rax == 42
        assert halted.sequence == 3
        next(exits)
        asked, kept = answers[1], answers[2]
        assert (asked.flags, asked.injection, asked.charged) == (ReplyFlag.FETCH, 0, {})
        assert asked.wanted == mask(("rip", "rax"))
        assert (kept.flags, kept.injection) == (ReplyFlag.COMPLETE, 0x80000030)
        assert kept.charged == {"rbx": 9}
        assert kept.wanted == mask(["rip"])


def test_fetch_in_the_middle_of_an_instruction_is_refused() -> None:
    with answers_to(Record(Reason.PORT, MID_READ, 0x60, size=1, count=1)) as (vcpu, answers):
        exits = vcpu.exits()
        next(exits)
        next(exits)
        with pytest.raises(errors.MidInstruction, match="middle of an instruction"):
            vcpu.fetch("rax")
        assert len(answers) == 1


def test_written_memory_is_told_once_and_from_the_second_run_on() -> None:
    owner = Owner()
    with answers_to(Record(Reason.HLT), Record(Reason.HLT), owner=owner) as (vcpu, answers):
        owner.written_log.note(0x1000, 16)
        exits = vcpu.exits()
        next(exits)
        next(exits)
        owner.written_log.note(0x2000, 1)
        owner.written_log.note(0x3000, 2)
        next(exits)
        next(exits)
        written = [answer.written for answer in answers]
        assert written == [[(0x1000, 16)], [(0x2000, 1), (0x3000, 2)], []]


def test_more_written_ranges_than_a_reply_holds_mean_everything() -> None:
    owner = Owner()
    with answers_to(owner=owner) as (vcpu, answers):
        exits = vcpu.exits()
        next(exits)
        for page in range(9):
            owner.written_log.note(page << 12, 4096)
        next(exits)
        assert answers[0].written is None


def test_run_and_wait_do_what_the_iterator_does() -> None:
    with answers_to(Record(Reason.PORT, MID_READ, 0x60, size=1, count=1)) as (vcpu, answers):
        vcpu.run()
        startup = vcpu.wait()
        assert startup is vcpu.exit
        assert startup.reason is Reason.STARTUP
        assert vcpu.wait(0) is startup
        vcpu.run()
        port = vcpu.wait(5)
        assert port is not None
        port.reply(3)
        vcpu.run()
        assert vcpu.wait(5) is not None
        assert answers[1].value == 3


def test_waiting_for_a_guest_that_gives_no_exit_ends_with_the_time() -> None:
    with answers_to() as (vcpu, _):
        assert to_the_end(vcpu)[-1] is Reason.SHUTDOWN
        vcpu.run()
        assert vcpu.wait(0.01) is None
        assert vcpu.running


def test_ranges_of_a_refused_reply_are_told_again() -> None:
    owner = Owner()
    refused = Record(Reason.INVALID_STATE)
    with answers_to(refused, Record(Reason.HLT), owner=owner) as (vcpu, answers):
        exits = vcpu.exits()
        next(exits)
        owner.written_log.note(0x1000, 16)
        next(exits)
        owner.written_log.note(0x2000, 1)
        next(exits)
        next(exits)
        assert [answer.written for answer in answers] == [
            [(0x1000, 16)],
            [(0x1000, 16), (0x2000, 1)],
            [],
        ]


def test_requests_count_up_and_kick() -> None:
    def script() -> Script:
        yield Record(Reason.STARTUP)
        yield Record(Reason.PAUSED)

    with ScriptedEngine(script) as engine:
        vcpu = vcpu_on(engine)
        assert (vcpu.pause(), vcpu.pause(), vcpu.request_window()) == (1, 2, 1)
        counters = [engine.counter(at) for at in (PAUSE_SEQ_AT, WINDOW_SEQ_AT, KICK_SEQ_AT)]
        assert counters == [2, 1, 3]
        exits = vcpu.exits()
        next(exits)
        next(exits)
        assert vcpu.pauses_acknowledged == 2
        vcpu.withdraw_window()
        assert vcpu.reply.flags == ReplyFlag.WITHDRAW_WINDOW


def test_what_belongs_to_a_stopped_vcpu_is_refused_on_another() -> None:
    with answers_to() as (vcpu, _):
        with pytest.raises(errors.NotStarted):
            vcpu.inject(0x20)
        with pytest.raises(errors.NotStarted):
            vcpu.wait(0)
        assert to_the_end(vcpu)[-1] is Reason.SHUTDOWN
        vcpu.run()
        with pytest.raises(errors.NotStopped):
            vcpu.inject(0x20)
        with pytest.raises(errors.NotStopped):
            _ = vcpu.registers.rip
        with pytest.raises(errors.NotStopped):
            vcpu.run()


def test_one_at_a_time_serves_a_vcpu() -> None:
    with answers_to(Record(Reason.HLT)) as (vcpu, _):
        exits = vcpu.exits()
        next(exits)
        with pytest.raises(errors.Busy):
            next(vcpu.exits())
        with pytest.raises(errors.Busy):
            vcpu.run()
        exits.close()
        assert next(vcpu.exits()).reason is Reason.HLT


def test_an_iterator_goes_on_where_the_last_one_was_left() -> None:
    with answers_to(Record(Reason.HLT), Record(Reason.PAUSED)) as (vcpu, answers):
        assert next(vcpu.exits()).reason is Reason.STARTUP
        vcpu.inject(0x21)
        assert next(vcpu.exits()).reason is Reason.HLT
        vcpu.run()
        assert next(vcpu.exits()).reason is Reason.PAUSED
        assert [answer.injection for answer in answers] == [0x80000021, 0]


@pytest.mark.parametrize(
    "record", [Record(0), Record(18), Record(2**32 - 1), Record(Reason.PORT, size=256, count=256)]
)
def test_an_exit_that_no_engine_may_publish_is_an_error(record: Record) -> None:
    with answers_to(record) as (vcpu, _):
        exits = vcpu.exits()
        next(exits)
        with pytest.raises(errors.UnknownExit, match=f"reason {record.reason} "):
            next(exits)


def test_a_session_that_died_ends_the_wait_with_its_reason() -> None:
    owner = Owner()
    with answers_to(owner=owner) as (vcpu, _):
        to_the_end(vcpu)
        owner.ended = errors.SessionEnded("sessions/t", "the engine was killed")
        with pytest.raises(errors.SessionEnded, match="the engine was killed"):
            next(vcpu.exits())


def test_closing_from_another_thread_ends_the_iterator() -> None:
    with answers_to() as (vcpu, _):
        exits = vcpu.exits()
        for exit_ in exits:
            if exit_.reason is Reason.SHUTDOWN:
                threading.Timer(0.01, vcpu.close).start()
        with pytest.raises(errors.Closed):
            vcpu.run()
        with pytest.raises(errors.Closed):
            vcpu.pause()
        with pytest.raises(errors.Closed):
            vcpu.registers.get("rip")


def test_a_closed_vcpu_lets_go_of_its_page() -> None:
    def script() -> Script:
        yield Record(Reason.STARTUP)

    with ScriptedEngine(script) as engine:
        vcpu = vcpu_on(engine)
        exits = vcpu.exits()
        next(exits)
        vcpu.close()
        with pytest.raises(BufferError):
            engine.close_page()
        exits.close()
        engine.mapping.close()


def test_a_turn_runs_and_waits_in_one_step() -> None:
    def script() -> Script:
        yield Record(Reason.STARTUP)
        yield Record(Reason.HLT)

    with ScriptedEngine(script) as engine:
        vcpu = vcpu_on(engine)
        with pytest.raises(ValueError, match="timeout"):
            vcpu.turn(-1)
        for reason in (Reason.STARTUP, Reason.HLT):
            exit_ = vcpu.turn()
            assert exit_
            assert exit_.reason is reason
        assert vcpu.turn(0) is None
        with pytest.raises(errors.NotStopped):
            vcpu.turn()


@pytest.mark.parametrize("ask", [Vcpu.pause, Vcpu.request_window])
def test_asking_a_vcpu_that_is_being_closed_is_no_other_error(
    ask: Callable[[Vcpu], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    vcpu = Vcpu("sessions/t/vcpus/0", page := Page(blank_page()), Owner())
    monkeypatch.setattr(vcpu, "_open_page", lambda: page)  # it looked before the close
    vcpu.close()
    with pytest.raises(errors.Closed):
        ask(vcpu)
