"""The engines that core knows, best first, and whether they start here."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from core_service.allotment import Allotment
from core_service.cgroups import Cgroups
from core_service.engine.process import EngineFailedError, EngineProcess
from core_service.refusal import Refusal

if TYPE_CHECKING:
    from core_service.cgroups import Cgroup
    from core_service.engine.protocol import Hello
    from core_service.settings import Settings

EXECUTABLES: Final = Path(__file__).parent / "native" / "bin"
NOBODY: Final = ""  # whose engine a survey starts
SURVEY_AGE: Final = 2.0  # seconds that the result of a survey is good for


@dataclass(frozen=True, slots=True)
class Kind:
    """An engine that core knows: its executable, the environment that it needs, and whether it is a
    whole x86 machine, so that a session which names no engine can get it."""

    name: str
    environment: Callable[[], dict[str, str]]
    whole: bool = True

    @property
    def executable(self) -> Path:
        """Where installation put it."""
        return EXECUTABLES / f"vmsession-{self.name}"


@dataclass(frozen=True, slots=True)
class Found:
    """What a survey found: what the engine says of itself, or why it does not start."""

    name: str
    hello: Hello | None
    why_not: str


def bochs_environment() -> dict[str, str]:
    """Where the software CPU's library lies. Found without importing it: its import fails where the C
    library is older than the one that it was built with."""
    found = importlib.util.find_spec("bochscpu")
    directory = Path(found.origin).parent if found and found.origin else None
    libraries = sorted(directory.glob("_bochscpu*.so")) if directory else []
    return {"VMSESSION_BOCHS": str(libraries[0])} if libraries else {}


def x86emu_environment() -> dict[str, str]:
    """Where libx86emu lies: beside the engines if somebody put it there, else where the loader looks."""
    soname = "libx86emu.so.3"
    beside = EXECUTABLES / soname
    return {"VMSESSION_X86EMU": str(beside) if beside.exists() else soname}


KINDS: Final = (
    Kind("kvm", dict),
    Kind("soft", bochs_environment),
    Kind("x86emu", x86emu_environment, whole=False),
)


class Catalog:
    """Starts engines. Owns no process for longer than the start takes."""

    def __init__(self, settings: Settings, cgroups: Cgroups | None = None) -> None:
        self._settings = settings
        self._cgroups = cgroups or Cgroups()
        self._running: set[EngineProcess] = set()
        self._surveyed = 0.0
        self._survey: asyncio.Task[list[Found]] | None = None
        self._closed = False
        self.on_start: Callable[[str, bool], None] = lambda engine, well: None

    @property
    def processes(self) -> int:
        """Engine processes that run now."""
        return sum(1 for process in self._running if process.running)

    @property
    def pids(self) -> set[int]:
        """The engine processes that run now."""
        return {process.pid for process in self._running if process.running}

    @property
    def adopted_pids(self) -> set[int]:
        """Those of them that an earlier core started: they are no children of this one."""
        return {process.pid for process in self._running if process.running and process.adopted}

    def own(self, process: EngineProcess) -> None:
        """A process that runs, of ours or of an earlier core."""
        self._running.add(process)
        process.on_reaped = lambda: self._running.discard(process)

    @property
    def surveying(self) -> bool:
        """Whether engines run that are only looked at."""
        return self._survey is not None and not self._survey.done()

    async def start(
        self,
        engine: str,
        allowed: Collection[str] | None,
        session: str,
        allotment: Allotment,
    ) -> EngineProcess:
        """Start an engine for a session; an empty name means the first whole machine of those `allowed`
        that starts.

        Raises Refusal ENGINE_UNAVAILABLE, MEMORY_FAILURE.
        """
        if engine:
            return await self._start(self._kind(engine), session, allotment)
        refusals = []
        for kind in KINDS:
            if not kind.whole or (allowed is not None and kind.name not in allowed):
                continue
            try:
                return await self._start(kind, session, allotment)
            except Refusal as refusal:
                refusals.append(str(refusal))
        why = "; ".join(refusals)
        raise Refusal("ENGINE_UNAVAILABLE", f"no engine works here: {why}", engine="", why=why)

    async def survey(self) -> list[Found]:
        """Start each engine once, and see."""
        if self._survey is None or (self._survey.done() and self._age() > SURVEY_AGE):
            self._survey = asyncio.get_running_loop().create_task(self._look())
        return await asyncio.shield(self._survey)

    def _age(self) -> float:
        return time.monotonic() - self._surveyed

    async def close(self) -> None:
        """Start no more, and stop what a survey still runs."""
        self._closed = True
        if self._survey:
            await self._survey
        for process in list(self._running):
            await process.stop()

    async def _look(self) -> list[Found]:
        found = list(await asyncio.gather(*(self._try(kind) for kind in KINDS)))
        self._surveyed = time.monotonic()
        return found

    async def _try(self, kind: Kind) -> Found:
        try:
            process = await self._start(kind, NOBODY, Allotment())
        except Refusal as refusal:
            return Found(kind.name, None, str(refusal.numbers.get("why", refusal)))
        await process.stop()
        return Found(kind.name, process.hello, "")

    async def _start(self, kind: Kind, session: str, allotment: Allotment) -> EngineProcess:
        if self._closed:
            raise Refusal("SHUTTING_DOWN", "core is stopping; retry with the next one")
        try:
            process = await self._spawn(kind, session, allotment)
        except Refusal:
            self.on_start(kind.name, False)
            raise
        self.on_start(kind.name, True)
        return process

    async def _spawn(self, kind: Kind, session: str, allotment: Allotment) -> EngineProcess:
        if not kind.executable.exists():
            raise self._unavailable(
                kind.name, "it was not built: install vmsession with gcc present"
            )
        cgroup: Cgroup | None = None
        try:
            if session != NOBODY:
                cgroup = await self._cgroups.make(session, allotment)
            process = EngineProcess.spawn(
                kind.name,
                kind.executable,
                kind.environment() | allotment.environment(),
                self._settings.engine_stop_limit,
                cgroup,
            )
        except OSError as error:
            if cgroup:
                await cgroup.remove()
            raise Refusal("MEMORY_FAILURE", f"cannot start engine {kind.name}: {error}") from error
        self.own(process)
        try:
            await process.greet(self._settings.engine_start_limit)
        except EngineFailedError as error:
            await process.stop()
            raise self._unavailable(kind.name, str(error)) from error
        if process.died:
            raise self._unavailable(kind.name, process.died)
        return process

    @staticmethod
    def _kind(name: str) -> Kind:
        for kind in KINDS:
            if kind.name == name:
                return kind
        known = ", ".join(kind.name for kind in KINDS)
        raise Catalog._unavailable(name[:32], f"there is no such engine; known are {known}")

    @staticmethod
    def _unavailable(engine: str, why: str) -> Refusal:
        return Refusal("ENGINE_UNAVAILABLE", f"engine {engine!r}: {why}", engine=engine, why=why)
