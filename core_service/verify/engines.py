"""Core's attachments against what the engines have mapped: by their tables, and by the kernel.

A session's attachments do not change while it is looked at; its vCPUs run on.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

from core_service.engine.protocol import EXECUTABLE, WRITABLE, Mapping, MappingKind
from core_service.refusal import Refusal
from core_service.verify.ledger import told_attachment
from dataspace.errors import DataspaceError

if TYPE_CHECKING:
    from core_service.core import Core
    from core_service.dataspaces import Dataspace
    from core_service.session import Session
    from core_service.verify.look import Look
    from dataspace.attachments import Attachment


async def check_engines(core: Core, look: Look) -> None:
    """Ask every engine. One that ends meanwhile has nothing mapped any more."""
    await asyncio.gather(*(_check(session, look) for session in list(core.sessions.values())))


async def _check(session: Session, look: Look) -> None:
    with suppress(Refusal, DataspaceError):  # it ends: so do its mappings
        async with session.changing:
            if not session.closing:
                listed = await session.memory.list_mappings()
                _Comparison(session, listed, look).run()


@dataclass(frozen=True, slots=True)
class _Claim:
    """Host memory of an engine that must be a range of one file."""

    host: int
    size: int
    inode: int
    offset: int
    writable: bool
    subject: str
    told: str

    @property
    def end(self) -> int:
        return self.host + self.size


class _Comparison:
    """One engine's list against its session."""

    def __init__(self, session: Session, listed: list[Mapping], look: Look) -> None:
        self._session = session
        self._look = look
        self._table = {each.gpa: each for each in listed if each.kind is MappingKind.REGION}
        kernel = [each for each in listed if each.kind is MappingKind.KERNEL]
        self._kernel = sorted(kernel, key=attrgetter("host"))
        self._ends = [each.end for each in self._kernel]
        self._accounted = [0] * len(self._kernel)

    def run(self) -> None:
        """Compare the table with the attachments, and the kernel's view with both."""
        for attachment in self._session.memory.attachments():
            self._look.mappings += 1
            if (region := self._in_table(attachment)) and (
                dataspace := self._session.memory.attached(attachment.dataspace)
            ):
                self._must_be_mapped(_claim(attachment, region, dataspace))
        for region in self._table.values():
            self._account(region)
            where = f"{region.gpa:#x}..{region.gpa + region.size - 1:#x}"
            self._wrong(self._session.name, f"its engine has {where}, which is not attached")
        for vcpu in self._session.vcpus.values():
            if vcpu.page:
                self._look.mappings += 1
                self._page_must_be_mapped(vcpu.page)
        self._nothing_else()

    def _wrong(self, subject: str, message: str) -> None:
        self._look.wrong("engine", subject, message)

    def _account(self, region: Mapping) -> None:
        """What is wrong with a region is told once: by the table."""
        for at in range(bisect_right(self._ends, region.host), len(self._kernel)):
            piece = self._kernel[at]
            if piece.host >= region.end:
                break
            self._accounted[at] += min(piece.end, region.end) - max(piece.host, region.host)

    def _in_table(self, attachment: Attachment) -> Mapping | None:
        region = self._table.pop(attachment.gpa, None)
        told = f"is attached at {told_attachment(attachment)} in {self._session.name}"
        if region is None:
            self._wrong(attachment.dataspace, f"{told}; its engine does not have it")
            return None
        flags = WRITABLE * attachment.writable | EXECUTABLE * attachment.executable
        if (region.size, region.flags) != (attachment.size, flags):
            self._account(region)
            self._wrong(
                attachment.dataspace,
                f"{told}; its engine has {region.size} bytes with flags {region.flags:#x} there",
            )
            return None
        return region

    def _must_be_mapped(self, claim: _Claim) -> None:
        """All of it, without a hole, and of the right file."""
        at = bisect_right(self._ends, claim.host)
        reached = claim.host
        while reached < claim.end and at < len(self._kernel):
            piece = self._kernel[at]
            if not _continues(piece, claim, reached):
                break
            end = min(piece.end, claim.end)
            self._accounted[at] += end - reached
            reached = end
            at += 1
        if reached < claim.end:
            missing = f"{claim.end - reached} bytes from {reached - claim.host:#x} on"
            self._wrong(
                claim.subject,
                f"{claim.told} in {self._session.name}; of that, its engine's address space "
                f"does not have {missing}",
            )

    def _page_must_be_mapped(self, page: Dataspace) -> None:
        inode = page.memory.memory.inode
        at = next((at for at, piece in enumerate(self._kernel) if piece.inode == inode), None)
        if at is None:
            self._wrong(page.name, "its engine does not have its page mapped")
            return
        piece = self._kernel[at]
        self._accounted[at] = piece.size
        if (piece.size, piece.offset, piece.flags) != (page.size, 0, WRITABLE):
            told = f"{piece.size} bytes from {piece.offset:#x} with flags {piece.flags:#x}"
            self._wrong(page.name, f"its engine has {told} of its page mapped")

    def _nothing_else(self) -> None:
        for piece, accounted in zip(self._kernel, self._accounted, strict=True):
            if accounted != piece.size:
                told = f"{piece.size - accounted} bytes of {self._name_of(piece.inode)}"
                self._wrong(
                    self._session.name, f"its engine has {told} mapped, which are not attached"
                )

    def _name_of(self, inode: int) -> str:
        mine = self._session.client.dataspaces.values()
        names = (each.name for each in mine if each.memory.memory.inode == inode)
        return next(names, f"memory with inode {inode}")


def _claim(attachment: Attachment, region: Mapping, dataspace: Dataspace) -> _Claim:
    return _Claim(
        host=region.host,
        size=region.size,
        inode=dataspace.memory.memory.inode,
        offset=dataspace.memory.offset + attachment.offset,
        writable=attachment.writable,
        subject=attachment.dataspace,
        told=f"is attached at {told_attachment(attachment)}",
    )


def _continues(piece: Mapping, claim: _Claim, reached: int) -> bool:
    """Whether a mapping has what belongs at host address `reached`."""
    return (
        piece.host <= reached < piece.end
        and piece.inode == claim.inode
        and piece.offset + (reached - piece.host) == claim.offset + (reached - claim.host)
        and bool(piece.flags & WRITABLE) == claim.writable
    )
