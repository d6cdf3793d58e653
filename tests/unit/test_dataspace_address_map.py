"""The rules of attach and detach, one by one."""

import sys
from collections.abc import Callable

import pytest

from dataspace.address_map import AddressMap, Attachment
from dataspace.errors import AddressMapFull, InvalidDataspace, InvalidRange, RegionConflict

PAGE = 4096
LIMIT = 64 * PAGE


class EngineDeadError(Exception):
    pass


class Engine:
    """Notes what it is told; refuses once `refuse_from` operations are done."""

    def __init__(self) -> None:
        self.done: list[Attachment | tuple[int, int]] = []
        self.refuse_from: int | None = None

    def map(self, attachment: Attachment) -> None:
        self._do(attachment)

    def unmap(self, gpa: int, size: int) -> None:
        self._do((gpa, size))

    def _do(self, operation: Attachment | tuple[int, int]) -> None:
        if len(self.done) == self.refuse_from:
            raise EngineDeadError
        self.done.append(operation)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def space(engine: Engine) -> AddressMap:
    return AddressMap(engine.map, engine.unmap, limit=LIMIT)


def ram(gpa: int, size: int, offset: int = 0, name: str = "ram") -> Attachment:
    return Attachment(gpa, size, name, offset, writable=True, executable=True)


def test_attach_maps_and_records(space: AddressMap, engine: Engine) -> None:
    made = space.attach("rom", 8 * PAGE, 3 * PAGE, PAGE, 2 * PAGE, False, False)
    assert made == Attachment(3 * PAGE, 2 * PAGE, "rom", PAGE, writable=False, executable=False)
    assert engine.done == list(space) == space.of("rom") == [made]


def test_size_zero_is_the_rest_of_the_dataspace(space: AddressMap) -> None:
    assert space.attach("ram", 8 * PAGE, 0, offset=3 * PAGE) == ram(0, 5 * PAGE, 3 * PAGE)


@pytest.mark.parametrize("first_detached", [False, True])
def test_identical_attachment_is_mapped_once(
    space: AddressMap, engine: Engine, first_detached: bool
) -> None:
    first = space.attach("ram", PAGE, 0)
    if first_detached:
        space.detach(0, PAGE)
    engine.done.clear()
    again = space.attach("ram", PAGE, 0)
    assert again == first
    assert (again is first, engine.done) == ((False, [first]) if first_detached else (True, []))
    assert list(space) == [first]


@pytest.mark.parametrize(
    ("gpa", "offset", "size", "writable", "executable", "name"),
    [
        pytest.param(4, 1, 2, True, True, "ram", id="another offset"),
        pytest.param(4, 0, 3, True, True, "ram", id="larger"),
        pytest.param(4, 0, 1, True, True, "ram", id="smaller"),
        pytest.param(4, 0, 2, False, True, "ram", id="not writable"),
        pytest.param(4, 0, 2, True, False, "ram", id="not executable"),
        pytest.param(4, 0, 2, True, True, "other", id="another dataspace"),
        pytest.param(3, 0, 2, True, True, "ram", id="reaching in from below"),
        pytest.param(5, 0, 2, True, True, "ram", id="reaching out above"),
        pytest.param(0, 0, 8, True, True, "ram", id="around"),
    ],
)
def test_any_other_overlap_is_a_conflict_that_names_it(  # noqa: PLR0917
    space: AddressMap,
    engine: Engine,
    gpa: int,
    offset: int,
    size: int,
    writable: bool,
    executable: bool,
    name: str,
) -> None:
    taken = space.attach("ram", 8 * PAGE, 4 * PAGE, 0, 2 * PAGE)
    with pytest.raises(RegionConflict) as conflict:
        space.attach(name, 8 * PAGE, gpa * PAGE, offset * PAGE, size * PAGE, writable, executable)
    assert conflict.value.numbers == {
        "gpa": gpa * PAGE,
        "size": size * PAGE,
        "conflict_gpa": 4 * PAGE,
        "conflict_size": 2 * PAGE,
    }
    assert engine.done == list(space) == [taken]


def test_conflict_names_the_lowest_in_the_way(space: AddressMap) -> None:
    for gpa in 9 * PAGE, 6 * PAGE:
        space.attach("ram", PAGE, gpa)
    with pytest.raises(RegionConflict) as conflict:
        space.attach("ram", 16 * PAGE, 0)
    assert conflict.value.numbers["conflict_gpa"] == 6 * PAGE


def test_neighbours_are_no_overlap(space: AddressMap) -> None:
    middle = space.attach("ram", 8 * PAGE, 4 * PAGE, 0, PAGE)
    below = space.attach("ram", 8 * PAGE, 2 * PAGE, 0, 2 * PAGE)
    above = space.attach("ram", 8 * PAGE, 5 * PAGE, 0, PAGE)
    assert list(space) == [below, middle, above]


@pytest.mark.parametrize("gpa", [0, LIMIT - PAGE])
def test_both_ends_of_the_address_space_are_usable(space: AddressMap, gpa: int) -> None:
    space.attach("ram", PAGE, gpa)
    assert space.detach(gpa, PAGE) == [ram(gpa, PAGE)]


BAD_RANGES = [
    pytest.param(1, PAGE, "not page-aligned", id="unaligned address"),
    pytest.param(-PAGE, PAGE, "outside the address space", id="negative address"),
    pytest.param(-PAGE, 2 * PAGE, "outside the address space", id="from below zero"),
    pytest.param(LIMIT, PAGE, "outside the address space", id="behind the end"),
    pytest.param(LIMIT - PAGE, 2 * PAGE, "outside the address space", id="across the end"),
    pytest.param(2**64 - PAGE, 2 * PAGE, "outside the address space", id="wraps"),
]


@pytest.mark.parametrize(("gpa", "size", "why"), BAD_RANGES)
def test_attach_to_a_bad_range(
    space: AddressMap, engine: Engine, gpa: int, size: int, why: str
) -> None:
    with pytest.raises(InvalidRange) as refusal:
        space.attach("ram", 2 * PAGE, gpa, size=size)
    assert refusal.value.numbers["why"] == why
    assert (refusal.value.numbers["gpa"], refusal.value.numbers["size"]) == (gpa, size)
    assert engine.done == list(space) == []


@pytest.mark.parametrize(
    ("gpa", "size", "why"),
    [
        *BAD_RANGES,
        pytest.param(0, 0, "no positive size", id="empty"),
        pytest.param(PAGE, -PAGE, "no positive size", id="negative size"),
        pytest.param(0, PAGE + 1, "not page-aligned", id="unaligned size"),
        pytest.param(0, LIMIT + PAGE, "outside the address space", id="more than all"),
    ],
)
def test_detach_of_a_bad_range(
    space: AddressMap, engine: Engine, gpa: int, size: int, why: str
) -> None:
    space.attach("ram", LIMIT, 0)
    engine.done.clear()
    with pytest.raises(InvalidRange) as refusal:
        space.detach(gpa, size)
    assert refusal.value.numbers["why"] == why
    assert engine.done == []
    assert list(space) == [ram(0, LIMIT)]


@pytest.mark.parametrize(
    ("dataspace_size", "offset", "size", "why"),
    [
        pytest.param(4, 4, 0, "offset beyond the dataspace", id="nothing left"),
        pytest.param(4, 5, 1, "offset beyond the dataspace", id="offset beyond"),
        pytest.param(4, -1, 1, "offset beyond the dataspace", id="negative offset"),
        pytest.param(4, 0, 5, "size beyond the dataspace", id="oversize"),
        pytest.param(4, 3, 2, "size beyond the dataspace", id="oversize from offset"),
        pytest.param(4, 0, -1, "size beyond the dataspace", id="negative size"),
        pytest.param(4, 0.5, 1, "not page-aligned", id="unaligned offset"),
        pytest.param(4, 0, 0.5, "not page-aligned", id="unaligned size"),
        pytest.param(0, 0, 0, "size is no positive number of whole pages", id="empty dataspace"),
        pytest.param(1.5, 0, 1, "size is no positive number of whole pages", id="half pages"),
    ],
)
def test_attach_of_a_bad_part(  # noqa: PLR0917
    space: AddressMap, engine: Engine, dataspace_size: float, offset: float, size: float, why: str
) -> None:
    with pytest.raises(InvalidDataspace) as refusal:
        space.attach("ram", int(dataspace_size * PAGE), 0, int(offset * PAGE), int(size * PAGE))
    assert refusal.value.numbers["why"] == why
    assert engine.done == list(space) == []


def test_default_limit_is_48_bits(engine: Engine) -> None:
    space = AddressMap(engine.map, engine.unmap)
    space.attach("ram", PAGE, 2**48 - PAGE)
    with pytest.raises(InvalidRange):
        space.attach("ram", PAGE, 2**48)


@pytest.mark.parametrize("limit", [0, -PAGE, PAGE + 1])
def test_limit_must_be_whole_pages(engine: Engine, limit: int) -> None:
    with pytest.raises(ValueError, match="whole pages"):
        AddressMap(engine.map, engine.unmap, limit)


def test_failed_map_records_nothing(space: AddressMap, engine: Engine) -> None:
    engine.refuse_from = 0
    with pytest.raises(EngineDeadError):
        space.attach("ram", PAGE, 0)
    assert (list(space), space.of("ram"), len(space)) == ([], [], 0)


@pytest.mark.parametrize(
    ("gpa", "size", "left"),
    [
        pytest.param(2, 4, [], id="all"),
        pytest.param(2, 1, [(3, 3, 2)], id="head"),
        pytest.param(5, 1, [(2, 3, 1)], id="tail"),
        pytest.param(3, 2, [(2, 1, 1), (5, 1, 4)], id="middle"),
        pytest.param(0, 3, [(3, 3, 2)], id="head from before"),
        pytest.param(4, 20, [(2, 2, 1)], id="tail and beyond"),
        pytest.param(0, 2, [(2, 4, 1)], id="before"),
        pytest.param(6, 2, [(2, 4, 1)], id="behind"),
    ],
)
def test_detach_takes_exactly_the_range(
    space: AddressMap, engine: Engine, gpa: int, size: int, left: list[tuple[int, int, int]]
) -> None:
    space.attach("ram", 8 * PAGE, 2 * PAGE, PAGE, 4 * PAGE)
    engine.done.clear()
    pieces = space.detach(gpa * PAGE, size * PAGE)
    start, end = max(gpa, 2) * PAGE, min(gpa + size, 6) * PAGE
    assert pieces == ([ram(start, end - start, start - PAGE)] if start < end else [])
    assert engine.done == [(piece.gpa, piece.size) for piece in pieces]
    survivors = [ram(g * PAGE, s * PAGE, o * PAGE) for g, s, o in left]
    assert list(space) == space.of("ram") == survivors
    assert len(space) == len(survivors)


def test_detach_over_several_attachments(space: AddressMap, engine: Engine) -> None:
    space.attach("a", 4 * PAGE, 0)
    space.attach("b", PAGE, 5 * PAGE)
    space.attach("a", 4 * PAGE, 8 * PAGE)
    engine.done.clear()
    pieces = space.detach(2 * PAGE, 8 * PAGE)
    assert pieces == [
        ram(2 * PAGE, 2 * PAGE, 2 * PAGE, "a"),
        ram(5 * PAGE, PAGE, 0, "b"),
        ram(8 * PAGE, 2 * PAGE, 0, "a"),
    ]
    assert engine.done == [(piece.gpa, piece.size) for piece in pieces]
    assert space.of("a") == [ram(0, 2 * PAGE, 0, "a"), ram(10 * PAGE, 2 * PAGE, 2 * PAGE, "a")]
    assert space.of("b") == []


def test_find_knows_each_byte(space: AddressMap) -> None:
    made = space.attach("ram", 2 * PAGE, 4 * PAGE)
    assert [space.find(gpa) for gpa in (4 * PAGE - 1, 6 * PAGE, -1)] == [None] * 3
    assert [space.find(gpa) for gpa in (4 * PAGE, 6 * PAGE - 1)] == [made] * 2


def test_detach_dataspace_finds_it_everywhere(space: AddressMap, engine: Engine) -> None:
    for page, name in enumerate("abaab"):
        space.attach(name, PAGE, page * PAGE)
    engine.done.clear()
    assert space.detach_dataspace("a") == [ram(p * PAGE, PAGE, 0, "a") for p in (0, 2, 3)]
    assert engine.done == [(p * PAGE, PAGE) for p in (0, 2, 3)]
    assert list(space) == space.of("b") == [ram(p * PAGE, PAGE, 0, "b") for p in (1, 4)]
    assert (space.of("a"), space.detach_dataspace("a")) == ([], [])


def test_detach_all_leaves_nothing(space: AddressMap, engine: Engine) -> None:
    made = [space.attach(name, PAGE, page * PAGE) for page, name in enumerate("ab")]
    engine.done.clear()
    assert space.detach_all() == made
    assert engine.done == [(0, PAGE), (PAGE, PAGE)]
    assert (list(space), space.of("a"), space.of("b")) == ([], [], [])


def test_dataspaces_that_came_and_went_leave_nothing(space: AddressMap) -> None:
    ways: list[Callable[[], object]] = [
        lambda: space.detach(0, PAGE),
        lambda: space.detach_dataspace("ram"),
        space.detach_all,
    ]
    for detach in ways:
        space.attach("ram", PAGE, 0)
        detach()
        assert not space._by_dataspace


def test_failed_unmap_leaves_the_record_and_can_be_retried(
    space: AddressMap, engine: Engine
) -> None:
    made = [space.attach(name, PAGE, page * PAGE) for page, name in enumerate("aba")]
    engine.done.clear()
    engine.refuse_from = 1
    with pytest.raises(EngineDeadError):
        space.detach(0, LIMIT)
    with pytest.raises(EngineDeadError):
        space.detach_dataspace("a")
    with pytest.raises(EngineDeadError):
        space.detach_all()
    assert engine.done == [(0, PAGE)]
    assert (list(space), space.of("a")) == (made, [made[0], made[2]])
    engine.refuse_from = None
    assert space.detach(0, LIMIT) == made


def test_full_map_refuses_what_would_add_to_it(engine: Engine) -> None:
    space = AddressMap(engine.map, engine.unmap, LIMIT, capacity=2)
    first = space.attach("ram", 8 * PAGE, 0)
    space.attach("rom", PAGE, 32 * PAGE)
    before = list(engine.done)
    for growth in (
        lambda: space.attach("more", PAGE, 40 * PAGE),
        lambda: space.detach(PAGE, PAGE),
    ):
        with pytest.raises(AddressMapFull) as refusal:
            growth()
        assert refusal.value.numbers == {"used": 2, "limit": 2}
    assert engine.done == before
    # What adds nothing still works, and makes room.
    assert space.attach("ram", 8 * PAGE, 0) is first
    assert space.detach(8 * PAGE, PAGE) == []
    space.detach(0, PAGE)
    space.detach(7 * PAGE, PAGE)
    space.detach(32 * PAGE, PAGE)
    space.detach(2 * PAGE, PAGE)
    assert list(space) == [ram(PAGE, PAGE, PAGE), ram(3 * PAGE, 4 * PAGE, 3 * PAGE)]


def calls_made_by(action: Callable[[], object]) -> int:
    """Count the Python and C functions that `action` calls: its cost, whatever else runs here."""
    events: list[str] = []
    sys.setprofile(lambda _frame, event, _argument: events.append(event))
    try:
        action()
    finally:
        sys.setprofile(None)
    return sum(event.endswith("call") for event in events)


def test_cost_of_a_hole_does_not_grow_with_it(engine: Engine) -> None:
    space = AddressMap(engine.map, engine.unmap)
    for page in range(100):
        space.attach("ram", PAGE, page * PAGE)
    small = calls_made_by(lambda: space.detach(100 * PAGE, PAGE))
    huge = calls_made_by(lambda: space.detach(100 * PAGE, 2**48 - 100 * PAGE))
    assert huge == small < 50
    assert len(space) == 100
