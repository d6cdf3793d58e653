"""Everything that a client can ask of core, each as something that can go wrong at any of its steps."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from vmsession.v1.vm_session_pb2 import UpgradeQuotaRequest

from tests.faults.bystander import COUNTER, PAGE
from vmm_client import Connection, Ram, Segment, Session, Share, Vcpu

ENGINE: Final = "soft"
ROUNDS: Final = 2


class Peer(Protocol):
    """Who shares memory with an actor."""

    uid: int

    def offers(self, uid: int) -> str: ...
    def accepts(self, share: str) -> None: ...
    def forgets(self) -> None: ...


class Actor:
    """The client that asks. What it makes is gone after `clean`."""

    def __init__(self, core: Connection, bystander: Peer, rom: Path) -> None:
        self.core = core
        self.bystander = bystander
        self.rom = rom
        self._made: list[Session | Ram] = []
        self._fds: list[int] = []

    def session(self) -> Session:
        made = self.core.create_session(ENGINE, label="actor")
        self._made.append(made)
        return made

    def ram(self, pages: int = 1) -> Ram:
        made = self.core.create_ram(pages * PAGE)
        self._made.append(made)
        return made

    def keep(self, made: Ram) -> Ram:
        self._made.append(made)
        return made

    def collect(self, ram: Ram) -> None:
        self._fds.append(self.core.fd_channel.collect(ram.name))

    def attached(self, pages: int = 1) -> tuple[Session, Ram]:
        """Memory at address 0 of a session."""
        session, ram = self.session(), self.ram(pages)
        session.attach(ram, 0)
        return session, ram

    def guest(self, *, stream: bool) -> tuple[Session, Ram, Vcpu]:
        """One that counts, at its first exit."""
        session, ram = self.attached(16)
        ram.store(0, COUNTER)
        vcpu = session.create_vcpu(stream=stream)
        vcpu.run()
        assert vcpu.wait(20)
        vcpu.registers.update({"cs": Segment(0, 0x9B, 0xFFFF, 0), "rip": 0})
        return session, ram, vcpu

    def drop(self) -> None:
        """Core is gone, and took everything along but what this process has itself."""
        while self._fds:
            os.close(self._fds.pop())
        self._made.clear()

    def clean(self) -> None:
        while self._fds:
            os.close(self._fds.pop())
        while self._made:
            self._made.pop().close()
        self.bystander.forgets()


@dataclass(frozen=True)
class Operation:
    """`act` is what goes wrong, with what `prepare` made."""

    name: str
    prepare: Callable[[Actor], Any]
    act: Callable[[Actor, Any], object]

    def __str__(self) -> str:
        return self.name


def nothing(actor: Actor) -> None:
    """Nothing is needed."""


def upgrade(actor: Actor, session: Session) -> None:
    request = UpgradeQuotaRequest(session=session.name, ram=4 * PAGE, capabilities=3)
    actor.core.rpc.call(actor.core.vm_sessions.UpgradeQuota, request)


def accepted(actor: Actor) -> Share:
    """An offer that the bystander accepted."""
    share = actor.ram(2).share(actor.bystander.uid)
    actor.bystander.accepts(share.name)
    return share


def run(actor: Actor, guest: tuple[Session, Ram, Vcpu]) -> None:
    """Some exits of a guest, each served once."""
    _, ram, vcpu = guest
    for _ in range(ROUNDS):
        vcpu.run()
        assert vcpu.wait(30)
    assert int.from_bytes(ram.read(0x8000, 4), "little") == ROUNDS


def furnished(actor: Actor) -> Session:
    """A session with all that there is in one."""
    session, ram, _ = actor.guest(stream=False)
    session.attach(ram, 0x100000, size=PAGE)
    return session


OPERATIONS: Final = (
    Operation("CreateSession", nothing, lambda actor, _: actor.session()),
    Operation("CreateVcpu-page", Actor.attached, lambda _, made: made[0].create_vcpu()),
    Operation("CreateVcpu-stream", Actor.session, lambda _, made: made.create_vcpu(stream=True)),
    Operation("CreateDataspace", nothing, lambda actor, _: actor.ram(3)),
    Operation("CreateRom", nothing, lambda actor, _: actor.keep(actor.core.create_rom(actor.rom))),
    Operation(
        "Attach",
        lambda actor: (actor.session(), actor.ram(4)),
        lambda _, made: made[0].attach(made[1], 0x10000, PAGE, 2 * PAGE),
    ),
    Operation(
        "Detach", lambda actor: actor.attached(4), lambda _, made: made[0].detach(0, 4 * PAGE)
    ),
    Operation(
        "Detach-start",
        lambda actor: actor.attached(4),
        lambda _, made: made[0].detach(0, 2 * PAGE),
    ),
    Operation(
        "Detach-middle",
        lambda actor: actor.attached(4),
        lambda _, made: made[0].detach(PAGE, 2 * PAGE),
    ),
    Operation("ShareDataspace", Actor.ram, lambda actor, ram: ram.share(actor.bystander.uid)),
    Operation(
        "AcceptShare",
        lambda actor: actor.bystander.offers(os.geteuid()),
        lambda actor, share: actor.keep(actor.core.accept(share)),
    ),
    Operation("RevokeShare", accepted, lambda _, share: share.revoke()),
    Operation("SealDataspace", Actor.ram, lambda _, ram: ram.seal()),
    Operation("FreeDataspace", Actor.attached, lambda _, made: made[1].close()),
    Operation("UpgradeQuota", Actor.session, upgrade),
    Operation("DeleteSession", furnished, lambda _, session: session.close()),
    Operation("fd channel", Actor.ram, Actor.collect),
    Operation("HandleExits", lambda actor: actor.guest(stream=True), run),
)
