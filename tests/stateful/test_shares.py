"""Clients that share memory, against plain books: who has what, who pays, what guests can reach."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from core_service import shares
from core_service.allotment import Allotment
from core_service.audit import AuditLog
from core_service.client import Client
from core_service.core import Core
from core_service.dataspaces import Dataspace
from core_service.engine.process import EngineProcess
from core_service.identity import Identity
from core_service.refusal import Refusal
from core_service.session import Session
from core_service.settings import Settings
from core_service.shares import Share
from dataspace.errors import DataspaceError
from dataspace.quota import Account, Amount
from tests.stateful.shares_books import PAGE, Book, GuestMemory, Offer, Root

USERS = (1000, 1001, 1002)
STARTED = 1

users = st.integers(0, len(USERS) - 1)
picks = st.integers(0, 11)
few_pages = st.integers(0, 3)
offsets = st.sampled_from([0, 0, 0, 1, 2])
sizes = st.sampled_from([0, 0, 0, 1, 2, 3])


class SharesMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = tempfile.TemporaryDirectory()
        self.core: Core = self.do(self.begin)
        self.books: list[Book] = []
        self.offers: list[Offer] = []
        self.clients: list[Client] = []
        self.sessions: list[Session] = []
        self.engines: list[GuestMemory] = []
        self.pids = 1 << 23  # of nobody: the kernel must not be asked what tells them apart
        self.patched = pytest.MonkeyPatch()
        self.patched.setattr(shares, "distinction", lambda _pid: STARTED)
        for user in range(len(USERS)):
            self.connect(user)

    def begin(self) -> Core:
        return Core(Settings(grace=3600), AuditLog.open(Path(self.directory.name)))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    def do(self, deed: Callable[[], Any]) -> Any:
        """Something that does not wait, in the loop all the same."""

        async def doing() -> Any:
            return deed()

        return self.run(doing())

    def expect(self, allowed: bool, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """The result, or None where the books say that it must be refused."""
        if allowed:
            return self.run(work())
        with pytest.raises((Refusal, DataspaceError)):
            self.run(work())
        return None

    def connect(self, user: int) -> None:
        self.pids += 1
        identity = Identity(USERS[user], USERS[user], self.pids, STARTED)
        client = self.do(lambda: self.core.clients.connected(f"p{self.pids}", identity, None))
        engine = GuestMemory()
        account = Account("session", 0, 256, client.account)
        process = cast("EngineProcess", engine)
        session = self.do(
            lambda: Session(
                "sessions/x", "", client, account, process, self.core.dataspaces, Allotment()
            )
        )
        session.name = f"sessions/{self.pids}"
        del self.clients[user : user + 1], self.sessions[user : user + 1]
        del self.engines[user : user + 1]
        self.clients.insert(user, client)
        self.sessions.insert(user, session)
        self.engines.insert(user, engine)

    def alive(self, pick: int) -> Book:
        books = [book for book in self.books if book.state == "alive"]
        return books[pick % len(books)]

    def alive_index(self, wanted: Book) -> int:
        """What to pick to get it."""
        return [book for book in self.books if book.state == "alive"].index(wanted)

    def some_alive(self) -> bool:
        return any(book.state == "alive" for book in self.books)

    def end(self, book: Book) -> bool:
        """The books' end of a dataspace; whether it is held."""
        for offer in [offer for offer in self.offers if offer.owner is book]:
            self.withdraw(offer)
        others = [each for each in self.books if each.root is book.root and each is not book]
        lonely = all(each.state == "freed" for each in others)
        book.shown.clear()
        held = bool(book.root.fds) and (book.had_fd or lonely)
        answered = any(each.user == book.user and each.state == "held" for each in others)
        book.state = "held" if held and not answered else "freed"
        return held

    def withdraw(self, offer: Offer) -> bool:
        self.offers.remove(offer)
        if offer.accepted is None or offer.accepted.state != "alive":
            return (
                offer.accepted is not None
                and offer.accepted.real.ending is not None
                and (offer.accepted.real.ending.result())
            )
        return self.end(offer.accepted)

    @rule(user=users, pages=st.integers(1, 3))
    def create(self, user: int, pages: int) -> None:
        client, name = self.clients[user], self.core.names.new("dataspaces")
        real = self.do(lambda: self.core.dataspaces.create(client, name, pages * PAGE))
        root = Root(id(real.memory.memory), [0] * pages)
        self.books.append(Book(real, user, root, 0, pages, True))

    @initialize(users=st.permutations(range(len(USERS))), writable=st.booleans(), part=few_pages)
    def share(self, users: list[int], writable: bool, part: int) -> None:
        """A dataspace that the second user has as well, and the third all or a part of."""
        self.create(users[0], 3)
        for page in range(3):
            self.write(0, page, page + 1)
        self.offer(0, users[1], 0, 0, True)
        self.accept(0)
        self.offer(0, users[2], part, 0, writable)
        self.accept(len(self.offers) - 1)

    @precondition(some_alive)
    @rule(
        pick=picks,
        to=users,
        offset=offsets,
        size=sizes,
        writable=st.booleans(),
        to_process=st.booleans(),
    )
    def offer(  # noqa: PLR0917 - what an offer is of
        self,
        pick: int,
        to: int,
        offset: int,
        size: int,
        writable: bool,
        to_process: bool = False,
    ) -> None:
        book = self.alive(pick)
        pid = self.clients[to].identity.pid if to_process else 0

        async def offering() -> Share:
            return self.core.shares.offer(
                self.clients[book.user],
                book.real,
                USERS[to],
                pid,
                offset * PAGE,
                size * PAGE,
                writable,
            )

        inside = offset < book.pages and offset + size <= book.pages
        own = book.real.origin is None
        allowed = own and inside and (book.writable or not writable)
        if share := self.expect(allowed, offering):
            self.offers.append(Offer(share, book, to, pid))

    @precondition(lambda self: self.offers)
    @rule(pick=picks)
    def accept_by_a_stranger(self, pick: int) -> None:
        self.accept(pick, wrong=1)

    @precondition(lambda self: self.offers)
    @rule(pick=picks)
    def accept(self, pick: int, wrong: int = 0) -> None:
        offer = self.offers[pick % len(self.offers)]
        user = (offer.user + wrong) % len(USERS)

        async def accepting() -> Dataspace:
            return self.core.shares.accept(self.clients[user], offer.real.name)

        made = self.expect(self.is_for(offer, user) and offer.accepted is None, accepting)
        if made:
            first, pages = offer.real.offset // PAGE, offer.real.size // PAGE
            offer.accepted = Book(made, user, offer.owner.root, first, pages, offer.real.writable)
            self.books.append(offer.accepted)

    def is_for(self, offer: Offer, user: int) -> bool:
        """Whether it is made to the present process of a user."""
        return offer.user == user and offer.pid in {0, self.clients[user].identity.pid}

    @precondition(some_alive)
    @rule(pick=picks, to=users, by_fd=st.booleans(), at=few_pages)
    def seal_what_a_receiver_can_write(self, pick: int, to: int, by_fd: bool, at: int) -> None:
        """Nobody may take the memory from one who was given a writable fd, or whose guest may write."""
        book = self.alive(pick)
        if book.real.origin is None and book.writable:
            self.offer(self.alive_index(book), to, 0, 0, True)
            self.accept_by_a_stranger(len(self.offers) - 1)
            self.accept(len(self.offers) - 1)
            taken = self.offers[-1].accepted
            assert taken
            if by_fd:
                self.collect(self.alive_index(taken), False)
            else:
                self.attach(self.alive_index(taken), at, False)
                self.write(self.alive_index(book), 0, at)
            self.seal(self.alive_index(book))

    @precondition(some_alive)
    @rule(pick=picks, to=users, times=st.integers(1, 2), let_go=st.booleans())
    def pass_through(self, pick: int, to: int, times: int, let_go: bool) -> None:
        """Somebody takes the whole, collects an fd that he keeps, and frees it again; with `let_go` all
        fds of the memory were closed in between."""
        book = self.alive(pick)
        for _ in range(times if book.real.origin is None else 0):
            self.offer(self.alive_index(book), to, 0, 0, False)
            self.accept(len(self.offers) - 1)
            taken = self.offers[-1].accepted
            assert taken
            self.collect(self.alive_index(taken), True)
            self.free(self.alive_index(taken))
            if let_go and times > 1:
                while book.root.fds:
                    os.close(book.root.fds.pop())
                self.who_holds_pays_in_full()
                self.pass_through(self.alive_index(book), to, 1, let_go)

    @precondition(lambda self: self.offers)
    @rule(pick=picks, wrong=st.sampled_from([0, 0, 0, 1]))
    def revoke(self, pick: int, wrong: int) -> None:
        offer = self.offers[pick % len(self.offers)]
        user = (offer.owner.user + wrong) % len(USERS)
        held = self.expect(
            offer.owner.user == user,
            lambda: self.core.shares.revoke(self.clients[user], offer.real.name),
        )
        if held is not None:
            assert held == self.withdraw(offer)

    @precondition(lambda self: self.offers)
    @rule(pick=picks)
    def revoke_and_free_at_once(self, pick: int) -> None:
        offer = self.offers[pick % len(self.offers)]

        async def both() -> tuple[bool, bool]:
            return await asyncio.gather(
                self.core.shares.revoke(self.clients[offer.owner.user], offer.real.name),
                self.core.dataspaces.end(offer.owner.real, "freed"),
            )

        assert self.run(both()) == [self.withdraw(offer), self.end(offer.owner)]

    @precondition(some_alive)
    @rule(pick=picks)
    def free(self, pick: int) -> None:
        book = self.alive(pick)
        assert self.run(self.core.dataspaces.end(book.real, "freed")) == self.end(book)

    @rule(user=users)
    def client_ends(self, user: int) -> None:
        client, session = self.clients[user], self.sessions[user]
        for book in self.books:
            if book.user == user and book.state == "alive":
                book.shown.clear()
                self.end(book)

        async def ending() -> None:
            await session.close("client ended")
            client.end("client ended")
            while self.core._reclaiming:
                await asyncio.wait(self.core._reclaiming)

        self.run(ending())
        self.connect(user)

    @precondition(some_alive)
    @rule(pick=picks, at=few_pages, read_only=st.booleans())
    def attach(self, pick: int, at: int, read_only: bool) -> None:
        book = self.alive(pick)
        writable = book.writable and not read_only
        wanted = {at + n: (book.first + n, writable) for n in range(book.pages)}
        theirs = self.guest_pages(book.user)
        taken = {page for page in wanted if page in theirs}
        again = all(book.shown.get(page) == what for page, what in wanted.items())
        attached = self.expect(
            again or not taken,
            lambda: self.sessions[book.user].memory.attach(
                book.real, at * PAGE, 0, 0, read_only=read_only
            ),
        )
        if attached:
            book.shown |= wanted

    @rule(user=users, at=few_pages, pages=st.integers(1, 3))
    def detach(self, user: int, at: int, pages: int) -> None:
        self.run(self.sessions[user].memory.detach(at * PAGE, pages * PAGE))
        for book in self.books:
            if book.user == user:
                for page in range(at, at + pages):
                    book.shown.pop(page, None)

    @precondition(some_alive)
    @rule(pick=picks, read_only=st.booleans())
    def collect(self, pick: int, read_only: bool) -> None:
        book = self.alive(pick)

        async def collecting() -> int:
            rights = " read-only" if read_only else ""
            return self.core.hand_out(self.clients[book.user], book.real.name + rights)

        whole = book.pages == len(book.root.content)
        fd = self.expect(whole, collecting)
        if fd is not None:
            book.root.fds.append(fd)
            book.had_fd = True
            if book.real.origin and book.writable and not read_only:
                book.root.sealable = False

    @precondition(lambda self: any(book.root.fds for book in self.books))
    @rule(pick=picks)
    def close_fd(self, pick: int) -> None:
        roots = [book.root for book in self.books if book.root.fds]
        os.close(roots[pick % len(roots)].fds.pop())

    @precondition(some_alive)
    @rule(pick=picks)
    def seal(self, pick: int) -> None:
        book = self.alive(pick)
        shown = [
            writable
            for each in self.books
            if each.root is book.root
            for _, writable in each.shown.values()
        ]
        free = book.root.sealable and not any(shown)
        sealed = self.expect(
            book.real.origin is None and (book.root.sealed or free),
            lambda: self.core.dataspaces.seal(self.clients[book.user], book.real.name),
        )
        if sealed:
            book.root.sealed = True

    @precondition(some_alive)
    @rule(pick=picks, at=few_pages, value=st.integers(0, 255))
    def write(self, pick: int, at: int, value: int) -> None:
        book = self.alive(pick)

        async def writing() -> bool:
            book.real.memory.write(at * PAGE, bytes([value]))
            await self.core.dataspaces.written(book.real, at * PAGE, 1)
            return True

        for engine in self.engines:
            engine.told.clear()
        if self.expect(book.writable and at < book.pages, writing):
            page = book.first + at
            book.root.content[page] = value
            for engine in self.engines:
                here = {
                    gpa
                    for gpa, what in engine.pages.items()
                    if what[:2] == (book.root.identity, page)
                }
                assert engine.told == here

    def guest_pages(self, user: int) -> dict[int, tuple[int, int, bool]]:
        return {
            page: (book.root.identity, *what)
            for book in self.books
            if book.user == user
            for page, what in book.shown.items()
        }

    @invariant()
    def guests_reach_what_is_attached_and_nothing_else(self) -> None:
        for user, engine in enumerate(self.engines):
            assert engine.pages == self.guest_pages(user)

    @invariant()
    def memory_is_one_for_all_who_hold_it(self) -> None:
        for book in self.books:
            if book.state == "alive":
                content = book.root.content[book.first : book.first + book.pages]
                read = book.real.memory.read(0, book.pages * PAGE)
                assert list(read[::PAGE]) == content

    @invariant()
    def who_holds_pays_in_full(self) -> None:
        self.do(self.core.dataspaces.probe)
        for book in self.books:
            if book.state == "held" and not book.root.fds:
                book.state = "freed"
        for user, client in enumerate(self.clients):
            mine = [book for book in self.books if book.user == user]
            alive = [book for book in mine if book.state == "alive"]
            held = [book for book in mine if book.state == "held"]
            offers = sum(1 for offer in self.offers if offer.owner.user == user)
            attachments = self.sessions[user].memory.count
            ram = sum(book.pages for book in alive) * PAGE
            caps = len(alive) + offers + attachments
            assert client.account.used == Amount(ram, caps)
            held_ram = sum(book.pages for book in held) * PAGE
            everything = Amount(ram + held_ram, caps + len(held))
            assert self.core.users.account(USERS[user]).used == everything

    @invariant()
    def the_ledger_tells_it(self) -> None:
        for book in self.books:
            record = self.core.ledger.record(book.real.name)
            assert record.state == book.state
            holders = {
                each.real.client
                for each in self.books
                if each.root is book.root and each.state != "freed"
            }
            assert record.holders == len(holders)

    @invariant()
    def what_is_shared_is_divided(self) -> None:
        """Nothing counts twice: of each page, each dataspace that has it has its part."""
        for root in {book.root for book in self.books}:
            having = [book for book in self.books if book.root is root and book.state != "freed"]
            on_page = Counter(
                page for book in having for page in range(book.first, book.first + book.pages)
            )
            for book in having:
                pages = range(book.first, book.first + book.pages)
                expected = sum(PAGE / on_page[page] for page in pages)
                committed, divided = self.core.measured(book.real.name)
                assert divided in {int(expected - 0.001), int(expected + 0.001)}
                assert committed <= len(pages) * PAGE

    @invariant()
    def offers_are_seen_by_those_whom_they_concern(self) -> None:
        for user, client in enumerate(self.clients):
            seen = {
                offer.real.name
                for offer in self.offers
                if offer.owner.real.client is client or self.is_for(offer, user)
            }
            assert {share.name for share in self.core.shares.visible_to(client)} == seen
        for book in self.books:
            mine = {offer.real.name for offer in self.offers if offer.owner is book}
            assert book.real.shares.keys() == mine

    def teardown(self) -> None:
        for root in {book.root for book in self.books}:
            while root.fds:
                os.close(root.fds.pop())
        for session in self.sessions:
            self.run(session.close("the test ends"))
        self.run(self.core.stop())
        self.directory.cleanup()
        self.patched.undo()
        used = self.core.users.root.used
        self.loop.close()
        assert used == Amount(0, 0)


TestShares = pytest.mark.timeout(60)(SharesMachine.TestCase)
TestShares.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
