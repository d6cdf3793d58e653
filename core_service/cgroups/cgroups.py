"""The cgroup that core was given, and what core makes of it:

    core            core itself and its keeper: a cgroup that limits others can hold no process
    engines/7k2m    the engine of sessions/7k2m, which is there as long as the engine is
    .control        systemd's, for what it runs beside core

Limits hold while a core sets them: in between, systemd must be able to start the next one in the cgroup
itself, so `release-cgroups` lifts them, and memory taken before counts no more. A systemd that starts a
core in its part needs none of that. Cgroups of a core that was killed become empty as their engines end;
the next core goes on with those that its keeper kept, and removes the others.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from typing import TYPE_CHECKING, Final

import structlog

from core_service.cgroups.cgroup import Cgroup
from core_service.cgroups.delegation import CORE
from core_service.cgroups.limits import CONTROLLERS, limit, write
from core_service.workers import workers

if TYPE_CHECKING:
    from collections.abc import Collection
    from concurrent.futures import Executor
    from pathlib import Path

    from core_service.allotment import Allotment
    from core_service.policy import Policy

log = structlog.get_logger()

ENGINES: Final = "engines"
SESSIONS: Final = "sessions/"  # how the names of sessions begin
NEEDS: Final = {"engine_memory": "memory", "engine_cpu": "cpu"}


class Cgroups:
    """Owns the cgroup that core was given, and its division; without one, nothing. `controllers` are
    those that limit engines."""

    def __init__(self) -> None:
        self.controllers: frozenset[str] = frozenset()
        self._engines: Path | None = None
        self._lock = -1
        self._removals: set[asyncio.Task[None]] = set()
        self._thread: Executor | None = None

    def take(self, given: Path) -> None:
        """Divide what was given: core moves into a part of it. Raises OSError; then core may have moved,
        and nothing is limited."""
        own, engines = given / CORE, given / ENGINES
        own.mkdir(exist_ok=True)
        self._lock = _locked(own)
        write(own / "cgroup.procs", str(os.getpid()))
        engines.mkdir(exist_ok=True)
        self.controllers = frozenset(each for each in CONTROLLERS if _enabled(each, given, engines))
        self._engines = engines
        # The kernel may let a change of cgroups wait for milliseconds, and all of them for each other.
        self._thread = workers("cgroups", 1)
        log.info("engines have cgroups", below=str(engines), limits=sorted(self.controllers))

    async def make(self, session: str, allotment: Allotment) -> Cgroup | None:
        """For the engine of a new session; None where core was given nothing. Raises OSError."""
        if self._engines is None:
            return None
        cgroup = self._cgroup(session, allotment)
        path = self._engines / _name(session)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, path.mkdir)
        try:
            await loop.run_in_executor(self._thread, limit, path, allotment, self.controllers)
        except OSError:
            await cgroup.remove()
            raise
        return cgroup

    def adopt(self, session: str, allotment: Allotment) -> Cgroup | None:
        """That of an engine which an earlier core started, with the same limits again; None if it has
        none. A machine goes on although a limit cannot be set."""
        if self._engines is None or not (self._engines / _name(session)).is_dir():
            return None
        try:
            limit(self._engines / _name(session), allotment, self.controllers)
        except OSError as error:
            log.error("an engine is not limited any more", session=session, why=str(error))  # noqa: TRY400
        return self._cgroup(session, allotment)

    def clear(self, sessions: Collection[str]) -> None:
        """Before there are new ones: remove, soon, what an earlier core left and no session has."""
        if self._engines is None or self._thread is None:
            return
        for left in self._engines.iterdir():
            if left.is_dir() and f"{SESSIONS}{left.name}" not in sessions:
                removal = Cgroup(left, None, self._thread).remove()
                task = asyncio.get_running_loop().create_task(removal)
                self._removals.add(task)
                task.add_done_callback(self._removals.discard)

    def must_do_for(self, policy: Policy) -> None:
        """Tell the operator which limits of a policy nothing here can hold."""
        for key, controller in NEEDS.items():
            limited = any(getattr(rule.session, key) is not None for rule in policy.rules)
            if limited and controller not in self.controllers:
                log.warning("a limit of the policy does not hold", key=key, lacking=controller)

    async def close(self) -> None:
        """Remove nothing more, and limit nothing more."""
        for task in tuple(self._removals):
            task.cancel()
        if self._removals:
            await asyncio.wait(self._removals)
        if self._thread:
            self._thread.shutdown()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        self._engines = None

    def _cgroup(self, session: str, allotment: Allotment) -> Cgroup:
        assert self._engines
        assert self._thread
        return Cgroup(self._engines / _name(session), allotment.memory, self._thread)


def _name(session: str) -> str:
    return session.removeprefix(SESSIONS)


def _locked(own: Path) -> int:
    """So that two cores do not divide one cgroup. Raises OSError."""
    fd = os.open(own, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise OSError(error.errno, "another core has it", str(own)) from error
    return fd


def _enabled(controller: str, *cgroups: Path) -> bool:
    """Whether it limits what is below each of these cgroups now."""
    for cgroup in cgroups:
        if controller not in (cgroup / "cgroup.controllers").read_text().split():
            return False
        try:
            write(cgroup / "cgroup.subtree_control", f"+{controller}")
        except OSError as error:
            log.warning("no limits by a controller", controller=controller, why=str(error))
            return False
    return True
