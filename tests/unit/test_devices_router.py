"""Routing of ports and guest-physical addresses."""

from __future__ import annotations

import pytest

from vmm_client.router import POKES_KEPT, Poke, RangeError, Router


class Recorder:
    """Answers a read with the offset in every byte, and notes all accesses."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.seen.append((offset, size))
        return int.from_bytes(bytes(range(offset, offset + size)), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.seen.append((offset, size, value))


@pytest.fixture
def router() -> Router:
    return Router()


@pytest.fixture
def device() -> Recorder:
    return Recorder()


def test_a_device_sees_offsets_in_its_range(router: Router, device: Recorder) -> None:
    router.ports.add(0x3F8, 8, device)
    assert router.ports.read(0x3FD, 1) == 5
    router.ports.write(0x3F8, 1, 0x41)
    assert device.seen == [(5, 1), (0, 1, 0x41)]


def test_both_ends_of_a_range_belong_to_it_and_no_more(router: Router, device: Recorder) -> None:
    for bus in (router.ports, router.mmio):
        bus.add(0x100, 4, device)
        assert [bus.read(address, 1) for address in (0xFF, 0x100, 0x103, 0x104)] == [
            *(0xFF, 0, 3, 0xFF)
        ]


def test_wide_accesses_are_split_to_the_width_of_the_device(
    router: Router, device: Recorder
) -> None:
    router.ports.add(0x40, 4, device)
    router.ports.write(0x40, 4, 0x44332211)
    assert device.seen == [(0, 1, 0x11), (1, 1, 0x22), (2, 1, 0x33), (3, 1, 0x44)]
    assert router.ports.read(0x40, 4) == 0x03020100


def test_a_wide_device_gets_the_access_whole(router: Router, device: Recorder) -> None:
    router.mmio.add(0xFED0_0000, 0x1000, device, width=8)
    assert router.mmio.read(0xFED0_0008, 8) == 0x0F0E0D0C0B0A0908
    assert device.seen == [(8, 8)]


def test_an_access_over_the_end_floats_where_nobody_is(router: Router, device: Recorder) -> None:
    router.ports.add(0x60, 2, device, width=2)
    assert router.ports.read(0x61, 2) == 0xFF01
    assert router.ports.read(0x5F, 2) == 0x00FF
    assert device.seen == [(1, 1), (0, 1)]


def test_three_bytes_are_two_and_one(router: Router, device: Recorder) -> None:
    router.mmio.add(0x1000, 8, device, width=4)
    assert router.mmio.read(0x1000, 3) == 0x020100
    assert router.mmio.read(0x1006, 3) == 0xFF0706


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_unclaimed_reads_float_high(router: Router, size: int) -> None:
    assert router.ports.read(0xFFFF, size) == (1 << 8 * size) - 1
    assert router.mmio.read(0xFEE0_0000, size) == (1 << 8 * size) - 1


def test_unclaimed_accesses_are_counted_by_address_and_kind(router: Router) -> None:
    for _ in range(3):
        router.ports.write(0x80, 1, 0)
    router.ports.read(0x2F9, 2)
    assert router.ports.pokes() == [Poke(0x80, "write", 3), Poke(0x2F9, "read", 1)]
    assert router.mmio.pokes() == []


def test_the_count_of_pokes_is_bounded_and_loses_none(router: Router) -> None:
    for port in range(POKES_KEPT + 5):
        router.ports.read(port, 1)
    router.ports.read(0, 1)
    assert len(router.ports.pokes()) == POKES_KEPT
    assert router.ports.pokes()[0] == Poke(0, "read", 2)
    assert router.ports.pokes_not_kept == 5


@pytest.mark.parametrize("base", [0xF9, 0x100, 0x107, 0x104])
def test_an_overlap_names_both(router: Router, device: Recorder, base: int) -> None:
    for bus in (router.ports, router.mmio):
        bus.add(0x100, 8, device)
        with pytest.raises(RangeError, match=rf"Recorder at {base:#x}-.* Recorder at 0x100-0x107"):
            bus.add(base, 8, device)
        bus.add(0x108, 8, device)
        bus.add(0xF8, 8, device)


@pytest.mark.parametrize(("base", "size"), [(0xFFFF, 2), (0x10000, 1), (-1, 2), (0, 0), (4, -1)])
def test_a_range_must_lie_on_the_bus(
    router: Router, device: Recorder, base: int, size: int
) -> None:
    with pytest.raises(RangeError, match="not within 0 to 0xffff"):
        router.ports.add(base, size, device)


def test_the_width_must_be_an_access_size(router: Router, device: Recorder) -> None:
    with pytest.raises(RangeError, match="width 3"):
        router.ports.add(0, 8, device, width=3)
