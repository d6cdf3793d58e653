"""The ledger against plain books, and its events against its records."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dataspace.errors import DataspaceError
from dataspace.ledger import DataspaceKind, Event, EventKind, Ledger, Record, Stamp, Totals

PAGE = 4096
HISTORY = 3
SESSIONS = ("sessions/1", "sessions/2")

picks = st.integers(0, 11)
sessions = st.sampled_from(SESSIONS)
few_pages = st.integers(0, 4)


class LogFullError(Exception):
    pass


@dataclass
class Book:
    """One dataspace: `shown` has its page number for each (session, guest page)."""

    name: str
    kind: str
    size: int
    state: str = "alive"
    shown: dict[tuple[str, int], int] = field(default_factory=dict)
    mappings: int = 0
    hand_outs: int = 0
    freed_at: int = 0


class Books:
    """Everything that ever lived; the sums are worked out afresh, the peak is followed."""

    def __init__(self) -> None:
        self.all: list[Book] = []
        self.peak = 0

    def in_state(self, state: str) -> list[Book]:
        return [book for book in self.all if book.state == state]

    def bytes_in(self, state: str) -> int:
        return sum(book.size for book in self.in_state(state))

    def totals(self) -> Totals:
        return Totals(
            live=len(self.in_state("alive")),
            live_bytes=self.bytes_in("alive"),
            held=len(self.in_state("held")),
            held_bytes=self.bytes_in("held"),
            peak_bytes=self.peak,
            created=len(self.all),
            freed=len(self.in_state("freed")),
        )

    def named(self, name: str) -> Book:
        return next(book for book in self.all if book.name == name)

    def enter(self, event: Event) -> None:
        """Book one event, believing it."""
        detail = event.detail
        if event.kind is EventKind.CREATED:
            book = Book(event.subject, str(detail["kind"]), int(detail["size"]))
            self.all.append(book)
            self.peak = max(self.peak, self.bytes_in("alive") + self.bytes_in("held"))
            return
        book = self.named(event.subject)
        match event.kind:
            case EventKind.ATTACHED:
                book.mappings += 1
                book.shown |= {key: int(detail["offset"]) // PAGE + n for n, key in keys(event)}
            case EventKind.DETACHED:
                for _, key in keys(event):
                    del book.shown[key]
            case EventKind.HANDED_OUT:
                book.hand_outs += 1
            case EventKind.HELD:
                book.state = "held"
            case _:
                book.state, book.freed_at = "freed", event.revision


def keys(event: Event) -> list[tuple[int, tuple[str, int]]]:
    first = int(event.detail["gpa"]) // PAGE
    count = int(event.detail["size"]) // PAGE
    return [(n, (str(event.detail["session"]), first + n)) for n in range(count)]


def booked(record: Record) -> Book:
    """Bring a record into the form of a book."""
    book = Book(record.name, record.kind, record.size, record.state)
    book.mappings, book.hand_outs = record.mappings, record.hand_outs
    for session, attachment in record.attachments:
        for n in range(attachment.size // PAGE):
            key = session, attachment.gpa // PAGE + n
            assert key not in book.shown
            book.shown[key] = attachment.offset // PAGE + n
    return book


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.books = Books()
        self.events: list[Event] = []
        self.log_is_full = False
        self.time = 0
        self.ledger = Ledger(self.log, self.clock, HISTORY)

    def log(self, event: Event) -> None:
        if self.log_is_full:
            raise LogFullError
        self.events.append(event)
        self.books.enter(event)

    def clock(self) -> Stamp:
        self.time += 1
        return Stamp(self.time, -self.time)

    def expect(self, allowed: bool, change: Callable[[], None]) -> None:
        """Make the change: it is one event if allowed, and an error without an event if not."""
        before = len(self.events)
        if self.log_is_full and allowed:
            with pytest.raises(LogFullError):
                change()
        elif allowed:
            change()
        else:
            with pytest.raises(DataspaceError):
                change()
        assert len(self.events) == before + (allowed and not self.log_is_full)

    def book(self, pick: int) -> Book:
        """Pick any dataspace that ever lived, rather a recent one."""
        return self.books.all[-1 - pick % len(self.books.all)]

    @rule(full=st.booleans())
    def fill_or_empty_the_log(self, full: bool) -> None:
        self.log_is_full = full

    @rule(kind=st.sampled_from(["ram", "rom"]), size=st.integers(0, 4))
    def create(self, kind: DataspaceKind, size: int) -> None:
        name = f"dataspaces/{len(self.books.all)}"
        self.expect(size > 0, lambda: self.ledger.create(name, kind, size * PAGE, "uid 1000"))

    @precondition(lambda self: self.books.all)
    @rule(
        pick=picks,
        session=sessions,
        gpa=few_pages,
        size=few_pages,
        offset=few_pages,
        writable=st.booleans(),
    )
    def attach(
        self, *, pick: int, session: str, gpa: int, size: int, offset: int, writable: bool
    ) -> None:
        book = self.book(pick)
        free = all((session, gpa + n) not in book.shown for n in range(size))
        inside = size > 0 and (offset + size) * PAGE <= book.size
        self.expect(
            book.state == "alive" and free and inside and not (writable and book.kind == "rom"),
            lambda: self.ledger.attach(
                book.name, session, gpa * PAGE, size * PAGE, offset * PAGE, writable
            ),
        )

    @precondition(lambda self: self.books.all)
    @rule(pick=picks, session=sessions, gpa=few_pages, size=few_pages)
    def detach(self, pick: int, session: str, gpa: int, size: int) -> None:
        book = self.book(pick)
        there = all((session, gpa + n) in book.shown for n in range(size))
        self.expect(
            book.state == "alive" and there and size > 0,
            lambda: self.ledger.detach(book.name, session, gpa * PAGE, size * PAGE),
        )

    @precondition(lambda self: self.books.all)
    @rule(pick=picks)
    def detach_everywhere(self, pick: int) -> None:
        book = self.book(pick)
        for session, page in list(book.shown):
            self.expect(True, partial(self.ledger.detach, book.name, session, page * PAGE, PAGE))

    @precondition(lambda self: self.books.all)
    @rule(pick=picks, writable=st.booleans())
    def hand_out(self, pick: int, writable: bool) -> None:
        book = self.book(pick)
        self.expect(
            book.state == "alive" and not (writable and book.kind == "rom"),
            lambda: self.ledger.hand_out(book.name, writable),
        )

    @precondition(lambda self: self.books.all)
    @rule(pick=picks)
    def free(self, pick: int) -> None:
        book = self.book(pick)
        self.expect(
            book.state == "alive" and not book.shown, lambda: self.ledger.free(book.name, "gone")
        )

    @precondition(lambda self: self.books.all)
    @rule(pick=picks)
    def hold(self, pick: int) -> None:
        book = self.book(pick)
        self.expect(
            book.state == "alive" and not book.shown, lambda: self.ledger.hold(book.name, "gone")
        )

    @precondition(lambda self: self.books.all)
    @rule(pick=picks)
    def release(self, pick: int) -> None:
        book = self.book(pick)
        self.expect(book.state == "held", lambda: self.ledger.release(book.name))

    @invariant()
    def records_are_the_books(self) -> None:
        freed = sorted(self.books.in_state("freed"), key=lambda book: book.freed_at)
        kept = freed[-HISTORY:]
        living = [book for book in self.books.all if book.state != "freed"]
        records = self.ledger.all()
        assert [record.name for record in records] == [book.name for book in kept + living]
        for record, book in zip(records, kept + living, strict=True):
            book_again = booked(record)
            book_again.freed_at = book.freed_at
            assert book_again == book
            assert record == self.ledger.record(book.name)
        names = [book.name for book in self.books.in_state("alive")]
        assert [record.name for record in self.ledger.alive()] == names

    @invariant()
    def totals_are_exact(self) -> None:
        assert self.ledger.totals() == self.books.totals()

    @invariant()
    def revisions_have_no_gap(self) -> None:
        assert [event.revision for event in self.events] == list(range(1, len(self.events) + 1))
        assert self.ledger.revision == len(self.events)


TestLedger = pytest.mark.timeout(60)(LedgerMachine.TestCase)
TestLedger.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
