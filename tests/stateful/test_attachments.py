"""A real core with a real engine against plain books: what is attached where, who is charged what.

The books know guest pages only; core knows ranges. Both ends of the guest's address space are in reach.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from vmsession.v1.vm_session_pb2 import GetSessionRequest

from tests.integration.running_core import RunningCore, Stubs
from tests.integration.waiting import eventually
from vmm_client import Connection, Ram, connect
from vmm_client.errors import Refused

PAGE = 4096
WINDOW = 12

pages = st.integers(0, WINDOW - 1)
sizes = st.integers(1, WINDOW)
ends = st.sampled_from(["low", "high"])
picks = st.integers(0, 7)


class Mapped(NamedTuple):
    """What a guest page shows."""

    dataspace: str
    page: int
    writable: bool


class AttachmentsMachine(RuleBasedStateMachine):
    """One session; memory that comes and goes."""

    core: Connection
    stubs: Stubs
    top: int

    def __init__(self) -> None:
        super().__init__()
        self.session = self.core.create_session("soft")
        self.charged = self.used()
        self.rams: list[Ram] = []
        self.fds: dict[str, list[int]] = {}
        self.held: dict[str, int] = {}
        self.guest: dict[int, Mapped] = {}

    def used(self) -> int:
        """Capabilities of the session."""
        request = GetSessionRequest(name=self.session.name)
        answer = self.core.rpc.call(self.core.vm_sessions.GetSession, request)
        return answer.session.capabilities.used

    def gpa(self, end: str, page: int) -> int:
        return (page if end == "low" else self.top // PAGE - WINDOW + page) * PAGE

    def pick(self, pick: int) -> Ram:
        return self.rams[pick % len(self.rams)]

    def has_ram(self) -> bool:
        return bool(self.rams)

    @rule(size=sizes)
    @precondition(lambda self: len(self.rams) < 4)
    def create(self, size: int) -> None:
        self.rams.append(self.core.create_ram(size * PAGE))

    @rule(pick=picks, end=ends, page=pages, offset=pages, size=sizes, read_only=st.booleans())
    @precondition(has_ram)
    def attach(  # noqa: PLR0917 - what can be asked
        self, pick: int, end: str, page: int, offset: int, size: int, read_only: bool
    ) -> None:
        ram, gpa = self.pick(pick), self.gpa(end, page)
        wanted = {gpa // PAGE + n: Mapped(ram.name, offset + n, not read_only) for n in range(size)}
        if (offset + size) * PAGE > ram.size:
            self.refused("INVALID_DATASPACE", ram, gpa, offset, size, read_only)
        elif gpa + size * PAGE > self.top:
            self.refused("INVALID_RANGE", ram, gpa, offset, size, read_only)
        elif self.attached(gpa, size * PAGE, ram.name, offset * PAGE, not read_only):
            self.map(ram, gpa, offset, size, read_only)
        elif wanted.keys() & self.guest.keys():
            self.refused("REGION_CONFLICT", ram, gpa, offset, size, read_only)
        else:
            self.map(ram, gpa, offset, size, read_only)
            self.guest |= wanted

    def map(self, *what: Any) -> None:
        ram, gpa, offset, size, read_only = what
        made = self.session.attach(ram, gpa, offset * PAGE, size * PAGE, read_only)
        assert (made.gpa, made.size, made.writable) == (gpa, size * PAGE, not read_only)

    def refused(self, reason: str, *what: Any) -> None:
        with pytest.raises(Refused) as refusal:
            self.map(*what)
        assert refusal.value.reason == reason

    def attached(self, *identity: Any) -> bool:
        """Whether exactly this attachment is there."""
        return any(
            (each.gpa, each.size, each.dataspace, each.offset, each.writable) == identity
            for each in self.session.memory.attachments()
        )

    @rule(end=ends, page=pages, size=sizes)
    def detach(self, end: str, page: int, size: int) -> None:
        gpa = self.gpa(end, page)
        size = min(size, (self.top - gpa) // PAGE)
        touched = {at: self.guest.pop(at) for at in self.range(gpa, size) if at in self.guest}
        shown: dict[int, Mapped] = {}
        for piece in self.session.detach(gpa, size * PAGE):
            shown |= self.pages_of(piece)
        assert shown == touched

    @rule(pick=picks)
    @precondition(has_ram)
    def collect(self, pick: int) -> None:
        name = self.pick(pick).name
        self.fds.setdefault(name, []).append(self.core.fd_channel.collect(name))

    @rule()
    @precondition(lambda self: self.fds)
    def let_go(self) -> None:
        name, fds = self.fds.popitem()
        for fd in fds:
            os.close(fd)
        if self.held.pop(name, 0):
            eventually(lambda: self.stubs.totals().held_bytes == sum(self.held.values()))

    @rule(pick=picks)
    @precondition(has_ram)
    def free(self, pick: int) -> None:
        ram = self.pick(pick)
        self.rams.remove(ram)
        ram.close()
        assert ram.held == (ram.name in self.fds)
        if ram.held:
            self.held[ram.name] = ram.size
        self.guest = {at: what for at, what in self.guest.items() if what.dataspace != ram.name}

    @invariant()
    def books_agree(self) -> None:
        attachments = self.session.memory.attachments()
        shown: dict[int, Mapped] = {}
        for each in attachments:
            shown |= self.pages_of(each)
        assert shown == self.guest
        assert self.used() == self.charged + len(attachments)
        totals = self.stubs.totals()
        assert totals.held_bytes == sum(self.held.values())
        assert totals.live_bytes - totals.held_bytes == sum(ram.size for ram in self.rams)

    @staticmethod
    def range(gpa: int, size: int) -> range:
        return range(gpa // PAGE, gpa // PAGE + size)

    def pages_of(self, piece: Any) -> dict[int, Mapped]:
        first = piece.offset // PAGE
        return {
            at: Mapped(piece.dataspace, first + n, piece.writable)
            for n, at in enumerate(self.range(piece.gpa, piece.size // PAGE))
        }

    def teardown(self) -> None:
        found = self.stubs.verify()
        assert not found.discrepancies, found
        assert found.mappings_checked >= len(self.session.memory.attachments())
        self.session.close()
        for ram in self.rams:
            ram.close()
        for fds in self.fds.values():
            for fd in fds:
                os.close(fd)
        eventually(lambda: self.stubs.totals().live_bytes == 0)


@contextmanager
def serving() -> Iterator[tuple[Connection, Stubs]]:
    core = RunningCore()
    stubs = Stubs(core.socket)
    try:
        with connect(str(core.socket)) as connection:
            yield connection, stubs
        core.stop()
        assert "Traceback" not in core.log(), core.log()
    finally:
        stubs.close()
        core.close()


def test_attachments() -> None:
    with serving() as (connection, stubs):
        with connection.create_session("soft") as session:
            AttachmentsMachine.top = 1 << session.capabilities.physical_bits
        AttachmentsMachine.core, AttachmentsMachine.stubs = connection, stubs
        run_state_machine_as_test(
            AttachmentsMachine,
            settings=settings(
                max_examples=10,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
