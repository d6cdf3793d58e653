"""What is told only now and then."""

from __future__ import annotations

from core_service.seldom import EVERY, REMEMBERED, Seldom


def test_each_thing_is_told_once_in_a_while() -> None:
    now = 5.0
    seldom = Seldom(lambda: now)
    assert [seldom.due("a"), seldom.due("a"), seldom.due("b")] == [True, False, True]
    now += EVERY - 0.1
    assert not seldom.due("a")
    now += 0.2
    assert [seldom.due("a"), seldom.due("a")] == [True, False]


def test_what_is_long_past_is_forgotten() -> None:
    now = 0.0
    seldom = Seldom(lambda: now)
    for number in range(REMEMBERED):
        assert seldom.due(number)
    now += EVERY
    assert seldom.due("another")
    assert len(seldom) == 1
