"""The fd channel against a core that misbehaves."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from vmm_client import fd_channel
from vmm_client.errors import BadFd, CoreUnavailable, Refused
from vmm_client.fd_channel import FdChannel

Serve = Callable[[socket.socket], None]


@contextmanager
def channel_to(path: Path, serve: Serve, ticket_answer: bytes = b"ok") -> Iterator[FdChannel]:
    """A channel whose other end takes the ticket, then does what `serve` does, and closes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()

        def accept() -> None:
            peer, _ = listener.accept()
            with peer:
                assert peer.recv(100) == b"ticket"
                peer.send(ticket_answer)
                serve(peer)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            channel = FdChannel(str(path), "ticket")
            with closing(channel):
                yield channel
        finally:
            thread.join(10)
            assert not thread.is_alive()


def answering(answer: bytes, fds: int = 0) -> Serve:
    """Answer one request, with so many fds of /dev/null."""

    def serve(peer: socket.socket) -> None:
        peer.recv(100)
        files = [os.open(os.devnull, os.O_RDONLY) for _ in range(fds)]
        socket.send_fds(peer, [answer], files)
        for fd in files:
            os.close(fd)
        peer.recv(100)

    return serve


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_an_fd_is_collected_close_on_exec(tmp_path: Path) -> None:
    with channel_to(tmp_path / "s", answering(b"ok", 1)) as channel:
        fd = channel.collect("dataspaces/1")
        assert not os.get_inheritable(fd)
        assert os.fstat(fd).st_rdev == Path(os.devnull).stat().st_rdev
        os.close(fd)


def test_a_refusal_is_typed(tmp_path: Path) -> None:
    answer = b"error NOT_FOUND no dataspace of that name"
    with (
        channel_to(tmp_path / "s", answering(answer)) as channel,
        pytest.raises(Refused, match="NOT_FOUND: no dataspace of that name") as caught,
    ):
        channel.collect("dataspaces/1")
    assert (caught.value.reason, caught.value.code) == ("NOT_FOUND", "")


@pytest.mark.parametrize("count", [0, 2])
def test_no_fd_and_two_fds_are_errors_and_none_is_left_open(tmp_path: Path, count: int) -> None:
    before = open_fds()
    with (
        channel_to(tmp_path / "s", answering(b"ok", count)) as channel,
        pytest.raises(BadFd, match=f"{count} came instead of one"),
    ):
        channel.collect("dataspaces/1")
    assert open_fds() <= before


@pytest.mark.parametrize("answer", [b"error NOT_FOUND", b"maybe", b"ok" + b" " * 5000])
def test_fds_of_an_answer_that_is_none_are_closed(tmp_path: Path, answer: bytes) -> None:
    before = open_fds()
    with (
        channel_to(tmp_path / "s", answering(answer, 1)) as channel,
        pytest.raises((Refused, CoreUnavailable)),
    ):
        channel.collect("dataspaces/1")
    assert open_fds() <= before


def test_a_core_that_closes_is_gone(tmp_path: Path) -> None:
    with channel_to(tmp_path / "s", lambda peer: None) as channel:
        with pytest.raises(CoreUnavailable, match="the fd channel failed"):
            channel.collect("dataspaces/1")
        assert channel.hung_up()


def test_a_core_that_is_there_has_not_hung_up(tmp_path: Path) -> None:
    def wait_for_the_end(peer: socket.socket) -> None:
        peer.recv(1)

    with channel_to(tmp_path / "s", wait_for_the_end) as channel:
        assert not channel.hung_up()


def test_a_channel_that_got_no_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fd_channel, "ANSWER_SECONDS", 0.01)

    def silent(peer: socket.socket) -> None:
        peer.recv(100)
        assert peer.recv(100) == b""  # a late answer could be taken for the next request's

    with channel_to(tmp_path / "s", silent) as channel:
        with pytest.raises(CoreUnavailable, match="did not answer within"):
            channel.collect("dataspaces/1")
        assert channel.hung_up()


def test_a_ticket_that_is_refused_leaves_no_socket(tmp_path: Path) -> None:
    before = open_fds()
    with (
        pytest.raises(Refused, match="DENIED"),
        channel_to(tmp_path / "s", lambda peer: None, b"error DENIED"),
    ):
        pass
    assert open_fds() == before


def test_one_request_at_a_time(tmp_path: Path) -> None:
    def serve(peer: socket.socket) -> None:
        for _ in range(20):
            wanted = peer.recv(100)
            peer.setblocking(False)
            with pytest.raises(BlockingIOError):
                peer.recv(100)  # nobody asks before the answer
            peer.setblocking(True)
            fd = os.memfd_create(wanted.decode())
            socket.send_fds(peer, [b"ok"], [fd])
            os.close(fd)

    with channel_to(tmp_path / "s", serve) as channel:
        wrong: list[str] = []

        def collect(name: str) -> None:
            for _ in range(5):
                fd = channel.collect(name)
                target = str(Path(f"/proc/self/fd/{fd}").readlink())
                os.close(fd)
                if name not in target:
                    wrong.append(f"{name}: {target}")

        threads = [threading.Thread(target=collect, args=(f"name{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert wrong == []
