"""AddressMap against a dictionary of pages, with callbacks that fail."""

from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dataspace.address_map import AddressMap, Attachment
from dataspace.errors import AddressMapFull, InvalidDataspace, InvalidRange, RegionConflict

PAGE = 4096
PAGES = 16
CAPACITY = 3
DATASPACES = {"a": 4, "b": 7}  # size in pages

pages = st.integers(0, PAGES - 1)
failures = st.one_of(st.none(), st.integers(0, 2))


class EngineDeadError(Exception):
    pass


class AddressMapMachine(RuleBasedStateMachine):
    """The model knows of each page what it shows, and which attach call put it there."""

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[int, tuple[int, Attachment]] = {}  # page: (serial of the call, the page)
        self.mapped: set[int] = set()  # pages, as the engine sees it
        self.exact = True  # no unmap failed halfway so far
        self.calls_left: int | None = None
        self.serials = count()
        self.space = AddressMap(self.map, self.unmap, PAGES * PAGE, CAPACITY)

    def map(self, attachment: Attachment) -> None:
        self.call()
        taken = set(page_numbers(attachment.gpa, attachment.size))
        assert not taken & self.mapped
        self.mapped |= taken

    def unmap(self, gpa: int, size: int) -> None:
        self.call()
        gone = set(page_numbers(gpa, size))
        assert gone <= self.model.keys()
        self.mapped -= gone

    def call(self) -> None:
        if self.calls_left == 0:
            raise EngineDeadError
        if self.calls_left is not None:
            self.calls_left -= 1

    @rule(
        name=st.sampled_from(sorted(DATASPACES)),
        page=pages,
        offset=st.integers(0, 7),
        size=st.integers(0, 7),
        writable=st.booleans(),
        fails=st.booleans(),
    )
    def attach(
        self, *, name: str, page: int, offset: int, size: int, writable: bool, fails: bool
    ) -> None:
        length = size or DATASPACES[name] - offset
        wanted = Attachment(
            page * PAGE, length * PAGE, name, offset * PAGE, writable, executable=True
        )
        known = wanted in runs(self.model)
        refusal = None if known else self.refusal_of(wanted, fails)
        self.calls_left = 0 if fails else None

        def attach() -> Attachment:
            return self.space.attach(
                name, DATASPACES[name] * PAGE, page * PAGE, offset * PAGE, size * PAGE, writable
            )

        if refusal:
            with pytest.raises(refusal) as refused:
                attach()
            if isinstance(refused.value, RegionConflict):
                taken = next(a for a in runs(self.model) if a.end > wanted.gpa)
                assert refused.value.numbers["conflict_gpa"] == taken.gpa
                assert refused.value.numbers["conflict_size"] == taken.size
            return
        assert attach() == wanted
        if not known:
            serial = next(self.serials)
            for number in page_numbers(wanted.gpa, wanted.size):
                shown = wanted.within(number * PAGE, (number + 1) * PAGE)
                self.model[number] = serial, shown

    def refusal_of(self, wanted: Attachment, fails: bool) -> type[Exception] | None:
        if wanted.size <= 0 or wanted.offset + wanted.size > DATASPACES[wanted.dataspace] * PAGE:
            return InvalidDataspace
        if wanted.end > PAGES * PAGE:
            return InvalidRange
        if self.model.keys() & set(page_numbers(wanted.gpa, wanted.size)):
            return RegionConflict
        if len(runs(self.model)) >= CAPACITY:
            return AddressMapFull
        return EngineDeadError if fails else None

    @rule(page=pages, size=st.integers(1, PAGES), calls=failures)
    def detach(self, page: int, size: int, calls: int | None) -> None:
        size = min(size, PAGES - page)
        gone = set(range(page, page + size))
        left = {number: shown for number, shown in self.model.items() if number not in gone}
        self.calls_left = calls
        try:
            pieces = self.space.detach(page * PAGE, size * PAGE)
        except AddressMapFull:
            assert len(runs(self.model)) == CAPACITY < len(runs(left))
        except EngineDeadError:
            self.exact = False
        else:
            assert len(runs(left)) <= CAPACITY
            self.went(gone, pieces)

    @precondition(lambda self: self.model)
    @rule(name=st.sampled_from(sorted(DATASPACES)), calls=failures)
    def detach_dataspace(self, name: str, calls: int | None) -> None:
        gone = {page for page, (_, shown) in self.model.items() if shown.dataspace == name}
        self.calls_left = calls
        try:
            pieces = self.space.detach_dataspace(name)
        except EngineDeadError:
            self.exact = False
        else:
            self.went(gone, pieces)

    @precondition(lambda self: self.model)
    @rule(calls=failures)
    def detach_all(self, calls: int | None) -> None:
        self.calls_left = calls
        try:
            pieces = self.space.detach_all()
        except EngineDeadError:
            self.exact = False
        else:
            self.went(set(self.model), pieces)
            assert not self.mapped
            self.exact = True

    def went(self, gone: set[int], pieces: list[Attachment]) -> None:
        taken = {page: self.model.pop(page) for page in gone & self.model.keys()}
        assert pieces == runs(taken)
        assert self.calls_left is None or self.calls_left >= 0

    @invariant()
    def record_is_the_model(self) -> None:
        expected = runs(self.model)
        assert list(self.space) == expected
        assert len(self.space) == len(expected) <= CAPACITY
        for name in DATASPACES:
            assert self.space.of(name) == [a for a in expected if a.dataspace == name]

    @invariant()
    def every_byte_is_found(self) -> None:
        for page in range(PAGES):
            found = self.space.find(page * PAGE + PAGE - 1)
            shown = self.model.get(page)
            assert (found is None) == (shown is None)
            if found and shown:
                assert found.within(page * PAGE, (page + 1) * PAGE) == shown[1]

    @invariant()
    def nothing_is_mapped_beyond_the_record(self) -> None:
        assert self.mapped <= self.model.keys()
        if self.exact:
            assert self.mapped == self.model.keys()


def page_numbers(gpa: int, size: int) -> range:
    return range(gpa // PAGE, (gpa + size) // PAGE)


def runs(shown_pages: dict[int, tuple[int, Attachment]]) -> list[Attachment]:
    """Join neighbouring pages of the same attach call to the attachments that are expected."""
    joined: list[tuple[int, Attachment]] = []
    for _, (serial, page) in sorted(shown_pages.items()):
        if joined and joined[-1][0] == serial and joined[-1][1].end == page.gpa:
            before = joined.pop()[1]
            page = Attachment(  # noqa: PLW2901 - the page grows to the run
                before.gpa,
                before.size + PAGE,
                before.dataspace,
                before.offset,
                before.writable,
                before.executable,
            )
        joined.append((serial, page))
    return [attachment for _, attachment in joined]


TestAddressMap = pytest.mark.timeout(60)(AddressMapMachine.TestCase)
TestAddressMap.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
