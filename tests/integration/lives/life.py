"""The life of one client: whatever it can do, in random order, until its time is over."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from random import Random
from typing import Final, TypeVar

from vmm_client import Connection, Ram, Reason, Session, Share, Vcpu
from vmm_client.errors import Refused, SessionEnded

Thing = TypeVar("Thing")

PAGE: Final = 4096
CODE: Final = bytes.fromhex("40 e642 ebfb")  # again: inc ax; out 0x42, al; jmp again
CODE_AT: Final = 0x1000
WINDOW: Final = 64  # pages where memory is attached: few, so that they meet
WINDOWS: Final = (0x10_0000, (1 << 32) - WINDOW // 2 * PAGE, 0)
MOST: Final = 6  # of everything: a life is short
HEIR_SECONDS: Final = 0.3
PATIENCE_SECONDS: Final = 0.1


class Idle(Exception):  # noqa: N818 - nothing is wrong
    """There is nothing to do it with, or enough of it."""


class Life:
    """What a client has. Each of its deeds is told by name, a refused one with its reason."""

    def __init__(
        self,
        core: Connection,
        engine: str,
        users: tuple[int, ...],
        chance: Random,
        tell: Callable[[str], None],
    ) -> None:
        self._core = core
        self._engine = engine
        self._users = users
        self._chance = chance
        self._tell = tell
        self._sessions: list[Session] = []
        self._vcpus: list[Vcpu] = []
        self._rams: list[Ram] = []
        self._offers: list[Share] = []
        self._kept: list[memoryview] = []

    def live(self, deeds: int) -> None:
        """Do so many deeds. Raises CoreUnavailable, and Refused SHUTTING_DOWN, when core ends."""
        doing = (
            (self.open, 2),
            (self.allocate, 4),
            (self.attach, 6),
            (self.detach, 4),
            (self.run, 4),
            (self.share, 4),
            (self.accept, 4),
            (self.write, 3),
            (self.store, 1),
            (self.keep, 1),
            (self.pass_on, 1),
            (self.seal, 1),
            (self.revoke, 2),
            (self.free, 2),
            (self.close, 1),
        )
        choices, weights = zip(*doing, strict=True)
        for deed in self._chance.choices(choices, weights, k=deeds):
            self._do(deed)

    def _do(self, deed: Callable[[], None]) -> None:
        try:
            deed()
            self._tell(deed.__name__)
        except Idle:
            pass
        except Refused as refusal:
            self._tell(f"{deed.__name__}: {refusal.reason}")
            if refusal.reason == "SHUTTING_DOWN":
                raise
        except SessionEnded:
            self._tell(f"{deed.__name__}: session ended")

    def open(self) -> None:
        """A session, with a guest that has code to run."""
        self._room_in(self._sessions)
        session = self._core.create_session(self._engine)
        self._sessions.append(session)
        code = self._core.create_ram(PAGE)
        code.write(0, CODE)
        session.attach(code, CODE_AT)
        stream = self._chance.random() < 0.2
        self._vcpus.append(session.create_vcpu(stream=stream))

    def allocate(self) -> None:
        """RAM."""
        self._room_in(self._rams)
        self._rams.append(self._core.create_ram(self._pages(256)))

    def attach(self) -> None:
        """Any part anywhere: much of it meets what is there, or ends beyond the memory."""
        session, ram = self._one(self._sessions), self._one(self._rams)
        read_only = self._chance.random() < 0.3
        offset, size = self._pages(4) - PAGE, self._pages(8) - PAGE
        session.attach(ram, self._address(), offset, size, read_only=read_only)

    def detach(self) -> None:
        """Any range."""
        self._one(self._sessions).detach(self._address(), self._pages(WINDOW))

    def run(self) -> None:
        """A guest, for some exits; one that gives none runs on until its session ends."""
        vcpu = self._one(self._vcpus)
        for _ in range(self._chance.randint(1, 50)):
            vcpu.run()
            exit_ = vcpu.wait(PATIENCE_SECONDS)
            if exit_ is None:
                self._vcpus.remove(vcpu)
                return
            if exit_.reason is Reason.STARTUP:
                cs = vcpu.registers.cs._replace(selector=0, base=0)
                vcpu.registers.update({"cs": cs, "rip": CODE_AT})

    def share(self) -> None:
        """Offer a part, or all, to somebody."""
        self._room_in(self._offers)
        size = self._chance.choice([0, 0, PAGE])
        read_only = self._chance.random() < 0.3
        uid = self._chance.choice(self._users)
        self._offers.append(self._one(self._rams).share(uid, size=size, read_only=read_only))

    def accept(self) -> None:
        """Take what somebody offers, this client included."""
        self._room_in(self._rams)
        offers = [offer for offer in self._core.shares() if not offer.accepted_as]
        self._rams.append(self._core.accept(self._one(offers)))

    def write(self) -> None:
        """In place."""
        ram = self._one(self._rams)
        ram.write(self._chance.randrange(ram.size // PAGE) * PAGE, os.urandom(PAGE))

    def store(self) -> None:
        """Through core."""
        self._one(self._rams).store(0, b"stored")

    def keep(self) -> None:
        """A mapping beyond the end of the dataspace."""
        self._kept.append(self._one(self._rams).view[:])

    def pass_on(self) -> None:
        """An fd to a process that outlives this one."""
        fd = self._core.fd_channel.collect(self._one(self._rams).name)
        try:
            seconds = self._chance.uniform(0, HEIR_SECONDS)
            subprocess.Popen(["/bin/sleep", f"{seconds:.3f}"], pass_fds=[fd])
        finally:
            os.close(fd)

    def seal(self) -> None:
        """For good."""
        self._one(self._rams).seal()

    def revoke(self) -> None:
        """An offer, accepted or not."""
        self._taken(self._offers).revoke()

    def free(self) -> None:
        """Memory, attached or not."""
        self._taken(self._rams).close()

    def close(self) -> None:
        """A session."""
        session = self._taken(self._sessions)
        self._vcpus = [vcpu for vcpu in self._vcpus if not vcpu.name.startswith(session.name)]
        session.close()

    def _one(self, things: Sequence[Thing]) -> Thing:
        if not things:
            raise Idle
        return self._chance.choice(things)

    def _taken(self, things: list[Thing]) -> Thing:
        thing = self._one(things)
        things.remove(thing)
        return thing

    @staticmethod
    def _room_in(things: Sequence[object]) -> None:
        if len(things) >= MOST:
            raise Idle

    def _pages(self, most: int) -> int:
        return self._chance.randint(1, most) * PAGE

    def _address(self) -> int:
        return self._chance.choice(WINDOWS) + self._chance.randrange(WINDOW) * PAGE
