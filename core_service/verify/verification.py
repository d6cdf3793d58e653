"""Verification as a whole: looks again at what may only have moved, and tells what stays wrong."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from core_service.audit import AuditError
from core_service.verify.accounts import check_accounts
from core_service.verify.chain import check_chain
from core_service.verify.engines import check_engines
from core_service.verify.kernel import check_kernel
from core_service.verify.ledger import check_ledger
from core_service.verify.look import Finding, Look

if TYPE_CHECKING:
    from core_service.core import Core

AGAIN: Final = 0.05  # seconds until the next look at what did not agree
PATIENCE: Final = 30.0  # seconds; no change of core's takes longer


@dataclass(frozen=True, slots=True)
class Verified:
    """What does not agree, at a revision of the ledger, and how much was compared."""

    findings: list[Finding]
    revision: int
    events: int
    mappings: int
    descriptors: int
    accounts: int


class Verification:
    """Verifies core, for one caller at a time. Remembers how far the log was checked."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._one = asyncio.Lock()
        self._checked = 0

    async def run(self, *, whole_chain: bool) -> Verified:
        """Compare everything; the log from its beginning, or from where the last run found it right."""
        async with self._one:
            look = await self._look_until_sure()
            events = await self._check_chain(0 if whole_chain else self._checked, look)
            return Verified(
                findings=sorted(look.findings),
                revision=self._core.ledger.revision,
                events=events,
                mappings=look.mappings,
                descriptors=look.descriptors,
                accounts=look.accounts,
            )

    async def _look_until_sure(self) -> Look:
        """A change under way is half done: what is found then counts if it is found every time until
        nothing is under way, or for longer than any change can take."""
        look, _ = await self._look()
        end = asyncio.get_running_loop().time() + PATIENCE
        while look.findings:
            await asyncio.sleep(AGAIN)
            again, quiet = await self._look()
            again.findings &= look.findings
            look = again
            if quiet or asyncio.get_running_loop().time() > end:
                break
        return look

    async def _look(self) -> tuple[Look, bool]:
        """One look, and whether nothing changed and nothing was changing meanwhile."""
        core, look = self._core, Look()
        before = core.ledger.revision if core.quiet else -1
        await check_ledger(core, look)
        await check_engines(core, look)
        await check_kernel(core, look)
        check_accounts(core, look)
        return look, core.quiet and core.ledger.revision == before

    async def _check_chain(self, after: int, look: Look) -> int:
        audit = self._core.audit
        if not audit.healthy:
            look.wrong("chain", "audit log", "cannot be written; its latest events wait")
        head = audit.head
        try:
            checked = await check_chain(audit.directory, after, head)
        except AuditError as error:
            look.wrong("chain", "audit log", f"cannot be read: {error.why}")
            return 0
        for subject, message in checked.discrepancies:
            look.wrong("chain", subject, message)
        if not checked.discrepancies:
            self._checked = checked.head.revision
        return checked.events
