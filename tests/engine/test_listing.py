"""What an engine says of its mappings: by its own table, and by the kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from core_service.engine import protocol
from core_service.engine.protocol import (
    EXECUTABLE,
    WRITABLE,
    Mapping,
    MappingKind,
    Status,
    Transport,
    Type,
)
from tests.engine.harness import PAGE, Engine, Vcpu, memory

PAGES = 300  # more than two packets have room for


@pytest.fixture
def fd() -> Iterator[int]:
    """A dataspace."""
    made = memory(PAGES * PAGE)
    yield made
    os.close(made)


def part(engine: Engine, first: int) -> protocol.Mappings:
    engine.send(protocol.list_packet(7, first))
    packet = engine.answer()
    assert protocol.header(packet) == (Type.MAPPINGS, 7)
    return protocol.parse_mappings(packet)


def listed(engine: Engine) -> list[Mapping]:
    """The whole list."""
    found: list[Mapping] = []
    while True:
        told = part(engine, len(found))
        assert told.first == len(found)
        found += told.entries
        if len(found) == told.total:
            return found


def regions(engine: Engine) -> list[Mapping]:
    return [each for each in listed(engine) if each.kind is MappingKind.REGION]


def kernels(engine: Engine) -> list[Mapping]:
    return [each for each in listed(engine) if each.kind is MappingKind.KERNEL]


def test_nothing_mapped(engine: Engine) -> None:
    assert listed(engine) == []


def test_a_part_of_a_dataspace(engine: Engine, fd: int) -> None:
    engine.map(0x10000, fd, 2 * PAGE, offset=5 * PAGE, writable=False)
    [region, kernel] = listed(engine)
    assert region == Mapping(MappingKind.REGION, 0x10000, region.host, 2 * PAGE, 0, 0, EXECUTABLE)
    inode = os.fstat(fd).st_ino
    assert kernel == Mapping(MappingKind.KERNEL, 0, region.host, 2 * PAGE, 5 * PAGE, inode, 0)


def test_a_hole_is_in_the_table_and_in_the_address_space(engine: Engine, fd: int) -> None:
    engine.map(0, fd, 3 * PAGE)
    engine.unmap(PAGE, PAGE)
    flags = WRITABLE | EXECUTABLE
    assert [(r.gpa, r.size, r.flags) for r in regions(engine)] == [
        (0, PAGE, flags),
        (2 * PAGE, PAGE, flags),
    ]
    assert [(k.offset, k.size, k.flags) for k in kernels(engine)] == [
        (0, PAGE, WRITABLE),
        (2 * PAGE, PAGE, WRITABLE),
    ]
    engine.unmap(0, 3 * PAGE)
    assert listed(engine) == []


def test_a_page_is_mapped_and_no_region(engine: Engine) -> None:
    vcpu = Vcpu(engine, Transport.PAGE)
    [page] = listed(engine)
    assert (page.kind, page.offset, page.flags) == (MappingKind.KERNEL, 0, WRITABLE)
    vcpu.close()


def test_a_list_of_several_parts_is_of_one_moment(engine: Engine, fd: int) -> None:
    for index in range(0, PAGES, 2):  # every second page: none beside another
        engine.map(index * PAGE, fd, PAGE, offset=index * PAGE)
    assert len(regions(engine)) == len(kernels(engine)) == PAGES // 2
    first = part(engine, 0)
    assert (first.total, len(first.entries)) == (PAGES, protocol.MAPPING_ENTRIES)
    engine.unmap(0, PAGES * PAGE)
    assert part(engine, protocol.MAPPING_ENTRIES).total == PAGES
    assert listed(engine) == []


def test_what_is_not_in_the_list(engine: Engine) -> None:
    response = engine.ask(lambda number: protocol.list_packet(number, 3))
    assert (response.status, response.text) == (Status.BAD_MESSAGE, "mapping 3: there are 0")
