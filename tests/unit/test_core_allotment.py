"""What a session asks of the host against what policy allows."""

from __future__ import annotations

import os

import pytest

from core_service.allotment import Allotment, allotted, listed
from core_service.policy import SessionLimits
from core_service.refusal import Refusal

HOST = frozenset(range(4))
FREE = SessionLimits(label="", sessions=1)
BOUND = SessionLimits(
    label="",
    sessions=1,
    vcpus=2,
    priority=5,
    cpus=frozenset({2, 3, 4}),
    engine_memory=1 << 30,
    engine_cpu=150,
)


def refusal(limits: SessionLimits, priority: int | None, *affinity: int) -> tuple[str, str]:
    with pytest.raises(Refusal) as refused:
        allotted(limits, priority, affinity, HOST)
    return refused.value.reason, str(refused.value)


def test_who_asks_for_nothing_gets_what_policy_has() -> None:
    assert allotted(FREE, None, (), HOST) == Allotment(0, frozenset(), None, None, 64 + 8)
    assert allotted(BOUND, None, (), HOST) == Allotment(5, frozenset({2, 3}), 1 << 30, 150, 2 + 8)


def test_what_was_asked_for() -> None:
    assert allotted(FREE, 19, (1, 1, 9), HOST).priority == 19
    assert allotted(FREE, 0, (1, 1, 9), HOST).cpus == {1}  # a host need not have all of them
    assert allotted(BOUND, 5, (3, 4), HOST) == Allotment(5, frozenset({3}), 1 << 30, 150, 10)
    assert allotted(FREE, None, (), None) == allotted(FREE, None, (), HOST)


def test_a_priority_that_is_none() -> None:
    assert refusal(FREE, 20) == ("INVALID_ARGUMENT", "priority is '20': must be within 0 and 19")


def test_a_priority_beyond_policy() -> None:
    why = "policy lets this session have the priority 5 or a higher number, not 4"
    assert refusal(BOUND, 4) == ("DENIED", why)
    assert refusal(BOUND, 0)[0] == "DENIED"


def test_cpus_beyond_policy() -> None:
    why = "policy lets this session run on CPUs 2-4, not on 0-1,7"
    assert refusal(BOUND, None, 7, 0, 1, 2) == ("DENIED", why)


def test_cpus_that_no_host_has() -> None:
    why = "affinity is '4,7-8': must be CPUs of core's, at least one: 0-3"
    assert refusal(FREE, None, 4, 7, 8) == ("INVALID_ARGUMENT", why)
    assert refusal(FREE, None, *range(5000)) == (
        "INVALID_ARGUMENT",
        "affinity is '5000 numbers': must be 4096 numbers at most",
    )


def test_a_policy_for_another_host() -> None:
    limits = SessionLimits(label="", sessions=1, cpus=frozenset({8, 9}))
    why = "policy lets this session run on CPUs 8-9 alone, and core has 0-3"
    assert refusal(limits, None) == ("DENIED", why)


def test_long_lists_are_cut_in_answers() -> None:
    assert len(refusal(BOUND, None, *range(0, 8000, 2))[1]) < 200


@pytest.mark.parametrize(
    ("cpus", "text"), [((), ""), ((3,), "3"), ((0, 1, 2, 8, 10, 11), "0-2,8,10-11")]
)
def test_cpus_as_the_kernel_writes_them(cpus: tuple[int, ...], text: str) -> None:
    assert listed(cpus) == text


def test_what_an_engine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Allotment(7, frozenset({8, 0})).environment() == {
        "VMSESSION_PRIORITY": "7",
        "VMSESSION_CPUS": "0,8",
    }
    assert Allotment().environment() == {}
    monkeypatch.setattr(os, "getpriority", lambda which, who: 12)
    assert Allotment(7).environment() == {"VMSESSION_PRIORITY": "12"}  # as core, which cannot rise
    monkeypatch.setattr(os, "getpriority", lambda which, who: -5)
    assert Allotment(7).environment() == {"VMSESSION_PRIORITY": "7"}


def test_the_keeper_gives_it_back() -> None:
    whole = allotted(BOUND, 6, (2,), HOST)
    assert Allotment.resumed(whole.recorded()) == whole
    assert Allotment.resumed(None) == Allotment()
