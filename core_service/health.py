"""What health checks are told (grpc.health.v1), for each service and, as "", for core as a whole.

A service is SERVING while core serves and what the service needs is there: the log, without which
nothing is made, and an engine that works. Nothing is SERVING while core starts, drains or stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog
from grpc_health.v1 import health_pb2
from vmsession.v1 import audit_pb2, core_pb2, dataspace_pb2, vm_session_pb2

from core_service.life import Life, Phase

if TYPE_CHECKING:
    from core_service.audit import AuditLog
    from core_service.engine.catalog import Catalog

log = structlog.get_logger()

WHOLE: Final = ""
CORE: Final = core_pb2.DESCRIPTOR.services_by_name["CoreService"].full_name
SESSIONS: Final = vm_session_pb2.DESCRIPTOR.services_by_name["VmSessionService"].full_name
DATASPACES: Final = dataspace_pb2.DESCRIPTOR.services_by_name["DataspaceService"].full_name
AUDIT: Final = audit_pb2.DESCRIPTOR.services_by_name["AuditService"].full_name
HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
SERVICES: Final = (CORE, SESSIONS, DATASPACES, AUDIT)
NEED_LOG: Final = {WHOLE, SESSIONS, DATASPACES}
NEED_ENGINE: Final = {WHOLE, SESSIONS}
SURVEY_AGAIN: Final = 10.0
"""Seconds between two looks at engines none of which works."""


class Health:
    """Knows what works. Owns the task that looks again at engines none of which does."""

    def __init__(
        self, life: Life, audit: AuditLog, engines: Catalog, survey_again: float = SURVEY_AGAIN
    ) -> None:
        self._life = life
        self._audit = audit
        self._engines = engines
        self._survey_again = survey_again
        self._works: dict[str, bool] = {}
        self.on_news: Callable[[str], None] = lambda why_not: None
        self._changed = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        life.on_change(lambda _: self._tell())
        audit.on_health = self._tell
        engines.on_start = self._engine_started

    async def begin(self) -> None:
        """See which engines work, and follow what becomes of them."""
        await self._engines.survey()
        self._following = asyncio.get_running_loop().create_task(self._follow())

    async def close(self) -> None:
        """Follow no more."""
        if self._following:
            self._following.cancel()
            await asyncio.wait({self._following})

    def why_not(self, service: str) -> str:
        """What keeps a service from serving, empty when nothing does."""
        if self._life.phase is not Phase.SERVING:
            return f"core is {self._life.phase.name.lower()}"
        if service in NEED_LOG and not self._audit.healthy:
            return "the audit log cannot be written"
        if service in NEED_ENGINE and not self._engine_works:
            return "no engine works"
        return ""

    async def change(self) -> None:
        """Return when something may have changed, of any service."""
        await self._changed.wait()

    @property
    def stopping(self) -> bool:
        """Whether nothing will change any more."""
        return self._life.stopping

    @property
    def _engine_works(self) -> bool:
        return any(self._works.values())

    def _engine_started(self, engine: str, well: bool) -> None:
        if self._works.get(engine) != well:
            self._works[engine] = well
            self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _follow(self) -> None:
        await self._life.until(Phase.SERVING)
        told = None
        while not self._life.draining:
            if told != (why := self.why_not(WHOLE)):
                log.info("health", serving=not why, why=why)
                self.on_news(why)
                told = why
            limit = None if self._engine_works else self._survey_again
            try:
                async with asyncio.timeout(limit):
                    await self.change()
            except TimeoutError:
                await self._engines.survey()
