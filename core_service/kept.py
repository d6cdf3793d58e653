"""What core has its keeper hold of each object: enough to go on with it in another core.

The rule: a record is put when its object is there, and dropped when it is gone; what an engine maps is
put after it was mapped, and dropped after it was unmapped. So a core that is killed between any two
lines leaves a state in which each object has its memory and its process, or is gone; a difference of one
mapping between record and engine shows when the engine is asked. An engine can tell whether it has a
vCPU, not which ones it has: their records are put before it is asked to make them. What an attempt at a
request made before it was answered is known by it (`underway`), and ended by the next core: to who asks
again it never was. What an attempt only changes is not ended.
"""

from __future__ import annotations

import base64
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import socket

    from core_service.client import Client
    from core_service.dataspaces import Dataspace
    from core_service.keeper.client import Keeper
    from core_service.session import Session
    from core_service.shares import Share
    from core_service.vcpu import Vcpu
    from dataspace.attachments import Attachment

FORMAT: Final = 1
"""Of the records. A core takes over no other: who changes what one means raises it."""

ANSWER_LIMIT: Final = 32 << 10
"""Bytes of an answer that are kept; one that is longer is made again."""

request: ContextVar[str] = ContextVar("request", default="")
"""The attempt at a mutation that a task carries out."""


class Kept:
    """Puts and drops records; without a keeper, nothing."""

    def __init__(self, keeper: Keeper | None = None) -> None:
        self.keeper = keeper
        self._makers: dict[str, str] = {}
        self._under_way: set[str] = set()
        self._upgrades: dict[str, list[tuple[str, int, int]]] = {}

    async def flushed(self) -> None:
        """Return when everything so far would survive the end of core."""
        if self.keeper:
            await self.keeper.flushed()

    def format(self) -> None:
        """How the next core is to read what follows."""
        self._put("format", FORMAT)

    def forget_others(self) -> None:
        """What an earlier core put and this one did not is kept no more."""
        if self.keeper:
            self.keeper.forget_found()

    def drop(self, key: str) -> None:
        """The object of this key is gone."""
        self._makers.pop(key, None)
        self._upgrades.pop(key, None)
        if self.keeper:
            self.keeper.drop(key)

    def _put(self, key: str, value: Any, *fds: int) -> None:
        if self.keeper:
            self.keeper.put(key, value, *fds)

    def _maker(self, key: str) -> str:
        """The attempt that made an object."""
        return self._makers.setdefault(key, request.get()) if self.keeper else ""

    def listening(self, name: str, socket: socket.socket) -> None:
        """A socket where clients connect: meanwhile they wait in its backlog."""
        self._put(f"listening:{name}", {}, socket.fileno())

    def client(self, client: Client, pidfd: int | None) -> None:
        """A client, and the process that it is."""
        who = client.identity
        value = {
            "identity": [who.uid, who.gid, who.pid, who.started],
            "ended": client.reclaimed,
        }
        self._put(client.name, value, *([] if pidfd is None else [pidfd]))

    def channel(self, number: int, client: Client, connection: socket.socket) -> None:
        """An fd channel: the client's lease."""
        self._put(f"channel:{number}", {"client": client.name}, connection.fileno())

    def dataspace(self, dataspace: Dataspace, *, held: bool = False) -> None:
        """A dataspace or the page of a vCPU; `held` once its owner freed it."""
        key = f"memory:{dataspace.name}"
        value = {
            "client": dataspace.client.name,
            "kind": dataspace.kind,
            "origin": dataspace.origin.name if dataspace.origin else "",
            "sealed": dataspace.sealed,
            "held": held,
            "view": dataspace.memory.described(),
            "request": self._maker(key),
        }
        self._put(key, value, dataspace.memory.memory.description)

    def no_dataspace(self, dataspace: Dataspace) -> None:
        """It is gone."""
        self.drop(f"memory:{dataspace.name}")

    def share(self, share: Share) -> None:
        """An offer, and what became of it."""
        key = f"share:{share.name}"
        value = {
            "dataspace": share.dataspace.name,
            "for": [share.uid, share.pid, share.started],
            "part": [share.offset, share.size, share.writable],
            "accepted": share.accepted.name if share.accepted else "",
            "request": self._maker(key),
        }
        self._put(key, value)

    def session(self, session: Session) -> None:
        """A session with its engine: our end of its channel, and its pidfd."""
        limits, transferred = session.account.limits, session.account.transferred
        value = {
            "client": session.client.name,
            "label": session.label,
            "engine": [session.engine.name, session.engine.pid, session.engine.greeting_hex],
            "quota": [limits.ram - transferred.ram, limits.caps - transferred.caps],
            "transferred": [transferred.ram, transferred.caps],
            "upgrades": self._upgrades_under_way(session.name),
            "created_ns": session.created_ns,
            "vcpu_limit": session.vcpu_limit,
            "allotment": session.allotment.recorded(),
            "request": self._maker(session.name),
        }
        self._put(session.name, value, *session.engine.descriptors)

    def upgraded(self, session: Session, ram: int, capabilities: int) -> None:
        """So much more was transferred to it."""
        if self.keeper:
            change = request.get(), ram, capabilities
            self._upgrades.setdefault(session.name, []).append(change)
        self.session(session)

    def _upgrades_under_way(self, session: str) -> list[tuple[str, int, int]]:
        """Attempts that are not answered yet, and what each transferred."""
        changes = [each for each in self._upgrades.pop(session, ()) if each[0] in self._under_way]
        if changes:
            self._upgrades[session] = changes
        return changes

    def vcpu(self, vcpu: Vcpu) -> None:
        """A vCPU; its page is a dataspace."""
        key = f"vcpu:{vcpu.name}"
        self._put(key, {"page": vcpu.page is not None, "request": self._maker(key)})

    def no_vcpu(self, vcpu: Vcpu) -> None:
        """It is gone, or was not made."""
        self.drop(f"vcpu:{vcpu.name}")

    def attachment(self, session: Session, attachment: Attachment) -> None:
        """What an engine has mapped."""
        self._put(
            f"attachment:{session.name}:{attachment.gpa}",
            [
                attachment.dataspace,
                attachment.offset,
                attachment.size,
                attachment.writable,
                attachment.executable,
            ],
        )

    def no_attachment(self, session: Session, gpa: int) -> None:
        """It is unmapped."""
        self.drop(f"attachment:{session.name}:{gpa}")

    def begun(self, attempt: str) -> None:
        """A mutation with a request id is under way."""
        self._under_way.add(attempt)
        self._put(f"underway:{attempt}", {})

    def answered(self, key: str, attempt: str, digest: bytes, answer: Any) -> None:
        """It was carried out. While both are kept, the answer counts."""
        raw = answer.SerializeToString()
        if len(raw) <= ANSWER_LIMIT:
            self.answer(
                key, [answer.DESCRIPTOR.full_name, digest.hex(), base64.b64encode(raw).decode()]
            )
        self.over(attempt)

    def answer(self, key: str, value: list[str]) -> None:
        """What a request was answered."""
        self._put(f"answer:{key}", value)

    def over(self, attempt: str) -> None:
        """It was answered, or refused and left nothing behind."""
        self._under_way.discard(attempt)
        self.drop(f"underway:{attempt}")

    def forgotten(self, key: str) -> None:
        """Its answer is not given again."""
        self.drop(f"answer:{key}")
