"""The engine's side of a page in Python, against the VMM's side in C."""

from __future__ import annotations

import threading
import time

from dataspace import futex
from dataspace.vcpu_page import ABI
from vmm_client.engine_side import EngineSide
from vmm_client.page import Page

LONG = 20.0
ROUNDS = 300


def test_a_page_is_introduced_as_an_engine_does() -> None:
    side = EngineSide(3, 1_000_000)
    page = Page(side.mapping)  # checks magic, ABI and size
    assert (page.engine.tsc_khz, page.engine.u32[1], page.engine.u32[3]) == (1_000_000, ABI, 3)
    assert page.engine.fpu_size == 0
    page.release()


def test_each_run_is_seen_once_and_a_stale_one_never() -> None:
    side = EngineSide(0, 0)
    page = Page(side.mapping)
    assert not side.runs()
    page.waiter.run()
    assert [side.runs(), side.runs()] == [True, False]
    side.publish()
    assert not side.runs()
    page.waiter.run()
    assert [side.runs(), side.exit_seq] == [True, 1]
    page.release()


def test_requests_can_be_seen_after_a_run() -> None:
    side = EngineSide(0, 0)
    page = Page(side.mapping)
    page.waiter.pause()
    page.waiter.window()
    page.waiter.pause()
    page.waiter.run()
    assert (side.runs(), side.pause_seq, side.window_seq) == (True, 2, 1)
    page.release()


def test_no_wake_up_is_lost_in_either_direction() -> None:
    """Each sleep of the engine's side has a limit of a tenth of a second: far fewer would do."""
    side = EngineSide(0, 0)
    page = Page(side.mapping)

    def serve() -> None:
        for _ in range(ROUNDS):
            while not side.runs():
                side.sleep()
            side.publish()

    engine = threading.Thread(target=serve)
    engine.start()
    started = time.monotonic()
    for n in range(ROUNDS):
        assert page.waiter.exchange(LONG) == n + 1
    engine.join(LONG)
    assert time.monotonic() - started < ROUNDS * 0.1 / 3
    page.release()


def test_a_request_ends_the_sleep_also_when_it_came_before() -> None:
    side = EngineSide(0, 0)
    page = Page(side.mapping)
    assert not side.runs()
    page.waiter.pause()
    before = time.monotonic()
    for _ in range(20):
        side.sleep()
    assert time.monotonic() - before < 1  # twenty limits are two seconds
    page.release()


def test_another_thread_can_wake() -> None:
    word, woken = futex.Word(5), threading.Event()

    def sleep() -> None:
        futex.sleep([(word, 5)], LONG)
        woken.set()

    sleeper = threading.Thread(target=sleep)
    sleeper.start()
    while not woken.wait(0.001):
        futex.wake(word)
    sleeper.join(LONG)


def test_a_word_that_moved_is_not_slept_on() -> None:
    before = time.monotonic()
    futex.sleep([(futex.Word(5), 5), (futex.Word(6), 7)], LONG)
    assert time.monotonic() - before < LONG / 2
