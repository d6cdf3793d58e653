"""Guest-physical memory over mapped dataspaces, and the log of what was written."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from vmsession.v1.dataspace_pb2 import Dataspace

from dataspace.address_map import CAPACITY, Attachment
from vmm_client.connection import Connection
from vmm_client.errors import BadFd, NotAttached
from vmm_client.memory import GuestMemory
from vmm_client.ram import Ram
from vmm_client.session import Session
from vmm_client.written import WrittenLog

PAGE = 4096


class Memfds:
    """Hands out memfds of a given size, as core's fd channel does."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.collected: list[str] = []

    def collect(self, what: str) -> int:
        self.collected.append(what)
        fd = os.memfd_create("test")
        os.ftruncate(fd, self.size)
        return fd


def ram_of(name: str, size: int, backed: int | None = None) -> tuple[Ram, Memfds]:
    memfds = Memfds(size if backed is None else backed)
    connection = cast(Connection, SimpleNamespace(fd_channel=memfds))
    return Ram(connection, Dataspace(name=name, size=size)), memfds


@pytest.fixture
def two() -> tuple[GuestMemory, Ram, Ram]:
    """`a` at 0 and again, its second page only, at 0x8000; `b` right behind the first."""
    memory = GuestMemory()
    a, b = ram_of("dataspaces/a", 2 * PAGE)[0], ram_of("dataspaces/b", PAGE)[0]
    session = object.__new__(Session)  # no more of it than its memory
    session.memory = memory
    for ram, gpa, offset, size in (
        (a, 0, 0, 2 * PAGE),
        (b, 2 * PAGE, 0, PAGE),
        (a, 0x8000, PAGE, PAGE),
    ):
        memory.attach(ram, Attachment(gpa, size, ram.name, offset, True, True))
        ram.attached_to(session)
    return memory, a, b


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def noted(memory: GuestMemory) -> list[tuple[int, int]]:
    return list(memory.log.since(0)[0])


def test_memory_is_mapped_when_it_is_first_touched_and_only_then() -> None:
    ram, memfds = ram_of("dataspaces/a", PAGE)
    assert memfds.collected == []
    ram.write(5, b"abc")
    assert ram.read(4, 5) == b"\0abc\0"
    assert memfds.collected == ["dataspaces/a"]


def test_mapping_leaves_no_fd_but_the_mapping_s_own() -> None:
    ram, _ = ram_of("dataspaces/a", PAGE)
    before = open_fds()
    ram.read(0, 1)
    assert open_fds() == before + 1
    del ram
    assert open_fds() == before


def test_a_memfd_that_is_too_short_is_not_mapped() -> None:
    ram, _ = ram_of("dataspaces/a", 2 * PAGE, backed=PAGE)
    with pytest.raises(BadFd, match="has 4096 bytes instead of 8192"):
        ram.read(0, 1)


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, PAGE + 1), (PAGE, 1), (0, -1)])
def test_beyond_the_end_of_a_dataspace_is_refused(offset: int, size: int) -> None:
    ram, memfds = ram_of("dataspaces/a", PAGE)
    with pytest.raises(ValueError, match=f"{size} bytes at offset {offset} of 4096"):
        ram.read(offset, size)
    if size > 0:
        with pytest.raises(ValueError, match="of 4096 in dataspaces/a"):
            ram.write(offset, bytes(size))
    assert memfds.collected == []


def test_reads_and_writes_cross_attachments(two: tuple[GuestMemory, Ram, Ram]) -> None:
    memory, a, b = two
    memory.write(2 * PAGE - 2, b"wxyz")
    assert (a.read(2 * PAGE - 2, 2), b.read(0, 2)) == (b"wx", b"yz")
    assert memory.read(2 * PAGE - 3, 6) == b"\0wxyz\0"
    assert memory.read(0x8000 + PAGE - 2, 2) == b"wx"


def test_what_was_written_is_noted_wherever_it_is_attached(
    two: tuple[GuestMemory, Ram, Ram],
) -> None:
    memory, a, _ = two
    memory.write(2 * PAGE - 2, b"wxyz")
    assert noted(memory) == [(2 * PAGE - 2, 2), (0x8000 + PAGE - 2, 2), (2 * PAGE, 2)]
    a.written(0, 16)
    assert noted(memory)[3:] == [(0, 16)]


@pytest.mark.parametrize(
    ("gpa", "size", "at"),
    [(3 * PAGE, 1, 3 * PAGE), (0, 4 * PAGE, 3 * PAGE), (-1, 2, -1), (1 << 60, 1, 1 << 60)],
)
def test_where_nothing_is_attached_nothing_is_read_or_written(
    two: tuple[GuestMemory, Ram, Ram], gpa: int, size: int, at: int
) -> None:
    memory = two[0]
    with pytest.raises(NotAttached) as caught:
        memory.write(gpa, b"x" * size)
    assert (caught.value.gpa, caught.value.size, caught.value.at) == (gpa, size, at)
    with pytest.raises(NotAttached):
        memory.read(gpa, size)
    assert memory.read(0, 3 * PAGE) == bytes(3 * PAGE)
    assert noted(memory) == []


def test_detached_pieces_are_gone_and_the_rest_stays(two: tuple[GuestMemory, Ram, Ram]) -> None:
    memory, _, _ = two
    memory.write(0, b"first")
    memory.detach(PAGE, PAGE)
    assert memory.read(0, 5) == b"first"
    assert memory.size == PAGE
    with pytest.raises(NotAttached):
        memory.read(PAGE, 1)


def test_freed_memory_is_attached_nowhere(two: tuple[GuestMemory, Ram, Ram]) -> None:
    memory, a, b = two
    memory.forget(a)
    assert [attachment.dataspace for attachment in memory.attachments()] == [b.name]
    assert memory.rams() == [b]


def test_what_core_attaches_takes_the_place_of_what_core_unmapped_unasked(
    two: tuple[GuestMemory, Ram, Ram],
) -> None:
    """Revoking a share unmaps it in the receiver's session, and the receiver is not told."""
    memory, a, b = two
    memory.attach(b, Attachment(PAGE, PAGE, b.name, 0, True, True))
    assert [(each.gpa, each.size, each.dataspace) for each in memory.attachments()] == [
        (0, PAGE, a.name),
        (PAGE, PAGE, b.name),
        (2 * PAGE, PAGE, b.name),
        (0x8000, PAGE, a.name),
    ]


def test_what_core_unmapped_unasked_does_not_fill_the_map(
    two: tuple[GuestMemory, Ram, Ram],
) -> None:
    memory, _, b = two
    for number in range(CAPACITY):
        memory.attach(b, Attachment((1 << 32) + number * 2 * PAGE, PAGE, b.name, 0, True, True))
    assert len(memory.attachments()) == CAPACITY + 3


def test_the_size_is_that_of_memory_without_a_gap(two: tuple[GuestMemory, Ram, Ram]) -> None:
    assert two[0].size == 3 * PAGE
    assert GuestMemory().size == 0


def test_memory_behind_the_devices_counts_for_itself(two: tuple[GuestMemory, Ram, Ram]) -> None:
    memory, a, _ = two
    assert memory.high_size == 0
    memory.attach(a, Attachment(4 << 30, PAGE, a.name, 0, True, True))
    memory.attach(a, Attachment((4 << 30) + 2 * PAGE, PAGE, a.name, PAGE, True, True))
    assert (memory.size, memory.high_size) == (3 * PAGE, PAGE)


def test_every_reader_of_the_log_has_its_own_pace() -> None:
    log = WrittenLog()
    log.note(0, 1)
    first, position = log.since(0)
    log.note(1, 1)
    assert (list(first), position) == ([(0, 1)], 1)
    assert list(log.since(position)[0]) == [(1, 1)]
    assert list(log.since(0)[0]) == [(0, 1), (1, 1)]
    assert list(log.since(2)[0]) == []


def test_the_log_is_bounded_and_tells_who_is_too_far_behind() -> None:
    log = WrittenLog()
    for n in range(1000):
        log.note(n, 1)
    ranges, position = log.since(0)
    assert (len(ranges), position) == (9, 1000)  # one more than a reply holds: everything
    assert list(log.since(998)[0]) == [(998, 1), (999, 1)]


def test_nothing_written_is_nothing_noted() -> None:
    log = WrittenLog()
    log.note(0x1000, 0)
    assert log.position == 0
