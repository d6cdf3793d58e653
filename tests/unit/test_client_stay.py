"""A vCPU that stays at its exit while others are served, until somebody runs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from dataspace._page import Waiter, wait_any
from dataspace.vcpu_page import Reason, mask
from tests.unit.client_scripted_engine import Owner, Record, Script, ScriptedEngine, vcpu_on
from vmm_client import errors
from vmm_client.entrypoint import Entrypoint
from vmm_client.vcpu import Vcpu

LIMIT_SECONDS = 10.0
Served = tuple[Vcpu, Reason, int]


@contextmanager
def vcpus(count: int, *records: Record) -> Iterator[list[Vcpu]]:
    """vCPUs that give STARTUP and then these."""

    def script() -> Script:
        yield Record(Reason.STARTUP)
        for record in records:  # noqa: UP028 - a tuple takes no answers
            yield record

    with ExitStack() as stack:
        made = [vcpu_on(stack.enter_context(ScriptedEngine(script)), Owner()) for _ in range(count)]
        yield made
        for vcpu in made:
            vcpu.close()


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def port(number: int) -> Record:
    return Record(Reason.PORT, address=number, size=1, count=1)


def test_a_vcpu_that_stays_gives_no_exit_while_the_others_go_on() -> None:
    with vcpus(2, *(port(n) for n in range(5))) as (first, second):
        seen: list[tuple[Vcpu, int]] = []
        for vcpu, exit_ in Entrypoint([first, second]).exits():
            if vcpu is first:
                assert exit_.reason is Reason.STARTUP
                first.stay()
            elif exit_.reason is Reason.PORT:
                seen.append((vcpu, exit_.address))
            if len(seen) == 5:
                break
        assert seen == [(second, n) for n in range(5)]
        assert first.staying
        assert not first.running
        assert first.exit.reason is Reason.STARTUP


def test_all_may_stay_and_each_goes_on_when_another_thread_runs_it() -> None:
    with vcpus(3, *(port(n) for n in range(20))) as three:
        seen: dict[Vcpu, list[int]] = {vcpu: [] for vcpu in three}
        runs: list[threading.Thread] = []
        for vcpu, exit_ in Entrypoint(three).exits():
            if exit_.reason is Reason.PORT:
                seen[vcpu].append(exit_.address)
            if exit_.address == 19:
                vcpu.close()
                continue
            vcpu.stay()
            runs.append(in_thread(vcpu.run))
        for run in runs:
            run.join(LIMIT_SECONDS)
        assert list(seen.values()) == [list(range(20))] * 3


def test_the_entrypoint_sleeps_until_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a spinning thread nor one that only wakes with its time limit."""
    waits: list[int] = []
    asleep = threading.Event()

    def counted(waiters: tuple[Waiter, ...], seen: tuple[int, ...], _: float) -> int:
        waits.append(len(waiters))
        asleep.set()
        return wait_any(waiters, seen, LIMIT_SECONDS)

    monkeypatch.setattr("vmm_client.entrypoint.wait_any", counted)
    with vcpus(1, port(1)) as (vcpu,):
        exits = Entrypoint([vcpu]).exits()
        next(exits)
        vcpu.stay()
        asleep.clear()
        before = len(waits)

        def run_once_asleep() -> None:
            assert asleep.wait(LIMIT_SECONDS)
            vcpu.run()

        other = in_thread(run_once_asleep)
        assert next(exits)[1].address == 1
        other.join(LIMIT_SECONDS)
        assert len(waits) - before <= 2
        exits.close()


def test_who_runs_it_in_the_handler_itself_is_not_run_twice() -> None:
    with vcpus(1, port(1), port(2)) as (vcpu,):
        exits = Entrypoint([vcpu]).exits()
        next(exits)
        vcpu.stay()
        vcpu.run()
        assert [next(exits)[1].address for _ in range(2)] == [1, 2]
        exits.close()


def test_another_thread_looks_and_answers_while_it_stays() -> None:
    fetched = Record(Reason.HLT, registers={"rax": 42})
    with vcpus(1, Record(Reason.HLT), fetched, port(7)) as (vcpu,):
        exits = Entrypoint([vcpu]).exits()
        next(exits)
        next(exits)
        vcpu.stay()
        values: list[int] = []

        def look_and_run() -> None:
            values.append(vcpu.fetch("rax").rax)
            vcpu.registers.rbx = 1
            vcpu.run()

        other = in_thread(look_and_run)
        vcpu_served, exit_ = next(exits)
        other.join(LIMIT_SECONDS)
        assert (vcpu_served, exit_.address, values) == (vcpu, 7, [42])
        exits.close()


def test_only_its_first_run_is_granted() -> None:
    with vcpus(1, port(1)) as (vcpu,):
        exits = Entrypoint([vcpu]).exits()
        next(exits)
        vcpu.stay()
        vcpu.run()
        with pytest.raises(errors.Busy):
            vcpu.run()
        assert next(exits)[1].address == 1
        with pytest.raises(errors.Busy):
            vcpu.run()
        exits.close()


def test_it_still_stays_for_the_next_one_who_serves() -> None:
    with vcpus(1, port(1)) as (vcpu,):
        entrypoint = Entrypoint([vcpu])
        exits = entrypoint.exits()
        next(exits)
        vcpu.stay()
        exits.close()
        again = entrypoint.exits()
        other = threading.Timer(0.0, vcpu.run)
        other.start()
        assert next(again)[1].address == 1
        other.join(LIMIT_SECONDS)
        again.close()


def test_an_iterator_runs_what_stayed_before() -> None:
    with vcpus(1, port(1)) as (vcpu,):
        exits = Entrypoint([vcpu]).exits()
        next(exits)
        vcpu.stay()
        exits.close()
        assert next(vcpu.exits()).address == 1
        assert not vcpu.staying


def test_staying_needs_an_entrypoint() -> None:
    with vcpus(1) as (vcpu,):
        next(vcpu.exits())
        with pytest.raises(ValueError, match="served by no Entrypoint"):
            vcpu.stay()


def test_a_vcpu_that_stays_is_closed_as_any_other() -> None:
    with vcpus(1) as (vcpu,):
        exits = Entrypoint([vcpu]).exits()
        next(exits)
        vcpu.stay()
        vcpu.close()
        with pytest.raises(errors.Closed):
            vcpu.run()
        assert list(exits) == []


def test_what_it_wants_may_be_told_meanwhile() -> None:
    with vcpus(1, Record(Reason.HLT, registers={"rip": 3})) as (vcpu,):
        exits = Entrypoint([vcpu]).exits()
        next(exits)
        vcpu.stay()
        vcpu.want("rip")
        assert vcpu.reply.wanted == mask(["rip"])
        vcpu.run()
        next(exits)
        assert vcpu.registers.rip == 3
        exits.close()


@pytest.mark.parametrize("serve", ["turn", "exits"])
def test_who_runs_it_and_who_serves_it_next_run_it_once(
    monkeypatch: pytest.MonkeyPatch, serve: str
) -> None:
    """Both at the same moment: an exit between two runs would be lost."""
    with vcpus(1, port(1), port(2)) as (vcpu,):
        exits = Entrypoint([vcpu]).exits()
        next(exits)
        vcpu.stay()
        exits.close()
        resume, begun, served = vcpu.resume, threading.Event(), threading.Event()

        def resume_late() -> None:
            begun.set()
            served.wait(0.2)
            resume()

        monkeypatch.setattr(vcpu, "resume", resume_late)
        other = in_thread(vcpu.run)
        assert begun.wait(LIMIT_SECONDS)
        if serve == "exits":
            assert next(vcpu.exits()).address == 1
        else:
            with pytest.raises(errors.NotStopped):
                vcpu.turn(LIMIT_SECONDS)
        served.set()
        other.join(LIMIT_SECONDS)
        exit_ = vcpu.wait(LIMIT_SECONDS)
        assert exit_ is not None
        assert exit_.address == 1
