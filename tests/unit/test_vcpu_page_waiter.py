"""Publishing and waiting on vCPU pages: `dataspace._page`, with threads as the engines."""

import mmap
import signal
import threading
import time

import pytest

from dataspace import vcpu_page as view
from dataspace._page import Waiter, wait_any

LONG = 30.0
SHORT = 0.005


class Peer:
    """The engine's side: two counters. `engine_waiting` says that publishing must wake it."""

    def __init__(self) -> None:
        self.mapping = mmap.mmap(-1, view.PAGE_BYTES)
        self.words = memoryview(self.mapping).cast("I")
        self.waiter = Waiter(self.mapping, spin_ns=0)

    def vmm(self, at: int) -> int:
        return self.words[(view.VMM_HALF + at) // 4]

    def publish(self) -> None:
        """A new exit. Without a wake: a waiter looks again by itself, in a tenth of a second."""
        self.words[view.EXIT_SEQ_AT // 4] += 1


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def peers() -> list[Peer]:
    return [Peer() for _ in range(3)]


def test_run_stores_the_number_after_the_last_exit(peer: Peer) -> None:
    peer.waiter.run()
    assert peer.vmm(view.RUN_SEQ_AT) == 1
    peer.publish()
    peer.publish()
    peer.waiter.run()
    assert peer.vmm(view.RUN_SEQ_AT) == 3


def test_the_counter_wraps(peer: Peer) -> None:
    peer.words[view.EXIT_SEQ_AT // 4] = 0xFFFFFFFF
    peer.waiter.run()
    assert peer.vmm(view.RUN_SEQ_AT) == 0
    assert peer.waiter.exit_seq == 0xFFFFFFFF


def test_wait_returns_at_once_when_the_exit_is_there(peer: Peer) -> None:
    peer.publish()
    assert peer.waiter.wait(0, LONG) == 1


def test_wait_returns_what_was_seen_when_the_time_is_over(peer: Peer) -> None:
    before = time.monotonic()
    assert peer.waiter.wait(0, SHORT) == 0
    assert time.monotonic() - before >= SHORT
    assert peer.vmm(view.VMM_WAITING_AT) == 0


def test_wait_announces_itself_and_ends_with_the_exit(peer: Peer) -> None:
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(peer.waiter.wait(0, LONG)))
    thread.start()
    while not peer.vmm(view.VMM_WAITING_AT):
        pass
    peer.publish()
    thread.join(LONG)
    assert seen == [1]
    assert peer.vmm(view.VMM_WAITING_AT) == 0


def test_exchange_runs_and_waits(peer: Peer) -> None:
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(peer.waiter.exchange(LONG)))
    thread.start()
    while peer.vmm(view.RUN_SEQ_AT) != 1:
        pass
    peer.publish()
    thread.join(LONG)
    assert seen == [1]


def test_requests_are_counted_and_kick(peer: Peer) -> None:
    assert [peer.waiter.pause(), peer.waiter.pause(), peer.waiter.window()] == [1, 2, 1]
    assert peer.vmm(view.PAUSE_SEQ_AT) == 2
    assert peer.vmm(view.WINDOW_SEQ_AT) == 1
    assert peer.vmm(view.KICK_SEQ_AT) == 3


def test_requests_of_several_threads_are_all_counted(peer: Peer) -> None:
    def ask() -> None:
        for _ in range(1000):
            peer.waiter.pause()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert peer.vmm(view.PAUSE_SEQ_AT) == peer.vmm(view.KICK_SEQ_AT) == 4000


def test_a_signal_breaks_the_wait_off(peer: Peer) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    main = threading.get_ident()

    def send() -> None:
        while not peer.vmm(view.VMM_WAITING_AT):
            pass
        signal.pthread_kill(main, signal.SIGUSR1)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            peer.waiter.wait(0, LONG)
    finally:
        signal.signal(signal.SIGUSR1, before)
        thread.join(LONG)
    assert peer.vmm(view.VMM_WAITING_AT) == 0


def test_wait_any_tells_which_page_moved(peers: list[Peer]) -> None:
    waiters = tuple(peer.waiter for peer in peers)
    peers[1].publish()
    assert wait_any(waiters, (0, 0, 0), LONG) == 1
    assert wait_any(waiters, (0, 1, 0), SHORT) == -1
    peers[2].publish()
    assert wait_any(waiters, (0, 1, 0), LONG) == 2


def test_wait_any_sleeps_until_one_moves(peers: list[Peer]) -> None:
    moved: list[int] = []
    waiters = tuple(peer.waiter for peer in peers)
    thread = threading.Thread(target=lambda: moved.append(wait_any(waiters, (0, 0, 0), LONG)))
    thread.start()
    while not all(peer.vmm(view.VMM_WAITING_AT) for peer in peers):
        pass
    peers[2].publish()
    thread.join(LONG)
    assert moved == [2]
    assert [peer.vmm(view.VMM_WAITING_AT) for peer in peers] == [0, 0, 0]


@pytest.mark.parametrize("timeout", [-1.0, 2e9, float("nan")])
def test_a_timeout_that_is_none_is_refused(peer: Peer, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be between 0 and 1e9 seconds"):
        peer.waiter.wait(0, timeout)
    with pytest.raises(ValueError, match="timeout must be between 0 and 1e9 seconds"):
        peer.waiter.exchange(timeout)
    assert peer.vmm(view.RUN_SEQ_AT) == 0


def test_no_page_too_many_pages_and_uneven_counters_are_refused(peer: Peer) -> None:
    for waiters, seen in (((), ()), ((peer.waiter,) * 129, (0,) * 129), ((peer.waiter,), (0, 0))):
        with pytest.raises(ValueError, match="wait_any takes 1 to 128 pages"):
            wait_any(waiters, seen, 0.0)


def test_a_short_page_is_refused() -> None:
    with pytest.raises(ValueError, match="a vCPU page has 12288 bytes"):
        Waiter(bytearray(4096))


def test_a_released_page_can_be_closed(peer: Peer) -> None:
    peer.words.release()
    with pytest.raises(BufferError):
        peer.mapping.close()
    peer.waiter.release()
    peer.mapping.close()


def test_a_released_page_is_not_touched(peer: Peer) -> None:
    waiter = peer.waiter
    waiter.release()
    waiter.release()
    for use in (
        waiter.run,
        waiter.pause,
        waiter.window,
        lambda: waiter.wait(0, 0.0),
        lambda: waiter.exchange(0.0),
        lambda: waiter.exit_seq,
        lambda: wait_any((waiter,), (0,), 0.0),
    ):
        with pytest.raises(ValueError, match="released"):
            use()
