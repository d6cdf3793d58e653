"""One thread that serves many vCPUs."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from dataspace._page import Waiter
from dataspace.vcpu_page import Reason
from tests.unit.client_scripted_engine import Owner, Record, Script, ScriptedEngine, vcpu_on
from vmm_client import errors
from vmm_client.entrypoint import MOST_VCPUS, Entrypoint, serve
from vmm_client.vcpu import Vcpu


@contextmanager
def vcpus(count: int, exits: int, owners: list[Owner] | None = None) -> Iterator[list[Vcpu]]:
    """vCPUs that give so many exits after STARTUP."""

    def script() -> Script:
        yield Record(Reason.STARTUP)
        for n in range(exits):
            yield Record(Reason.PORT, address=n, size=1, count=1)

    with ExitStack() as stack:
        engines = [stack.enter_context(ScriptedEngine(script)) for _ in range(count)]
        made = [vcpu_on(engine, owners[n] if owners else None) for n, engine in enumerate(engines)]
        yield made
        for vcpu in made:
            vcpu.close()


def test_every_exit_of_every_vcpu_arrives_in_its_order() -> None:
    with vcpus(3, 20) as three:
        seen: dict[Vcpu, list[int]] = {vcpu: [] for vcpu in three}
        for vcpu, exit_ in serve(three):
            if exit_.reason is Reason.PORT:
                seen[vcpu].append(exit_.address)
            if exit_.address == 19:
                vcpu.close()
        assert list(seen.values()) == [list(range(20))] * 3


def test_a_busy_vcpu_starves_no_other() -> None:
    with vcpus(2, 1000) as (first, second):
        counts: Counter[Vcpu] = Counter()
        for vcpu, _ in serve([first, second]):
            counts[vcpu] += 1
            if counts[first] == 200:
                break
        assert counts[second] > 20


def test_a_vcpu_that_is_added_by_a_handler_is_started() -> None:
    with vcpus(2, 0) as (first, second):
        entrypoint = Entrypoint([first])
        started = []
        for vcpu, exit_ in entrypoint.exits():
            assert exit_.reason is Reason.STARTUP
            started.append(vcpu)
            if vcpu is first:
                assert not second.running
                entrypoint.add(second)
            else:
                break
        assert started == [first, second]


def test_a_session_that_died_is_dropped_and_the_rest_goes_on() -> None:
    owners = [Owner(), Owner()]
    with vcpus(2, 0, owners) as (first, second):
        entrypoint = Entrypoint([first, second])
        exits = entrypoint.exits()
        assert {next(exits)[0], next(exits)[0]} == {first, second}
        owners[0].ended = errors.SessionEnded("sessions/a", "the engine was killed")
        with pytest.raises(errors.SessionEnded, match="the engine was killed"):
            next(exits)
        second.close()
        assert list(entrypoint.exits()) == []


def test_a_vcpu_whose_stream_was_refused_is_dropped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with vcpus(1, 0) as (vcpu,):
        entrypoint = Entrypoint([vcpu])
        exits = entrypoint.exits()
        next(exits)

        def refuse() -> None:
            raise errors.Refused("TAKEN_OVER", "another stream serves it")

        monkeypatch.setattr(vcpu, "check_alive", refuse)
        with pytest.raises(errors.Refused, match="TAKEN_OVER"):
            next(exits)
        assert list(entrypoint.exits()) == []


def test_a_vcpu_that_somebody_else_serves_is_busy() -> None:
    with vcpus(1, 1) as (vcpu,):
        exits = vcpu.exits()
        next(exits)
        with pytest.raises(errors.Busy):
            next(serve([vcpu]))
        exits.close()


def test_leaving_the_loop_frees_the_vcpus() -> None:
    with vcpus(2, 1) as two:
        served = serve(two)
        next(served)
        served.close()
        for vcpu in two:
            assert vcpu.wait(5) is not None


def test_more_vcpus_than_the_kernel_can_watch_are_refused() -> None:
    with vcpus(1, 0) as (vcpu,):
        entrypoint = Entrypoint()
        others = [object.__new__(Vcpu) for _ in range(MOST_VCPUS)]
        for other in others:
            entrypoint.add(other)
        with pytest.raises(ValueError, match="at most 128 vCPUs"):
            entrypoint.add(vcpu)


def test_a_vcpu_may_be_added_while_the_thread_goes_to_sleep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By another thread, which this stands for."""
    with vcpus(2, 0) as (first, second):
        entrypoint = Entrypoint([first])
        awaited = first.awaited
        added = []

        def add_and_await() -> tuple[Waiter, int]:
            added.append(second)
            entrypoint.add(second)
            return awaited()

        exits = entrypoint.exits()
        assert next(exits)[0] is first
        monkeypatch.setattr(first, "awaited", add_and_await)
        assert next(exits)[0] is second
        assert added
        exits.close()
