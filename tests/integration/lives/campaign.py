"""Generations of clients: each has a core of its own on the log of the one before, which is stopped or
killed at the end. Meanwhile engines are killed, too. Nothing may be left of anybody."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from time import monotonic
from typing import Final

from core_service.audit import Query, verify_chain
from core_service.audit.fold import MEMORY
from tests.integration.lives.figures import Figures
from tests.integration.lives.left import LEFT_SECONDS, core_digits, nothing_left
from tests.integration.lives.nursery import Tally
from tests.integration.lives.traces import holders_of_memory, look, shmem
from tests.integration.running_core import ROOT, RunningCore, Stubs
from tests.integration.waiting import eventually

ENGINE_KILLED_EVERY_SECONDS: Final = 0.5
DIES_WITHIN_SECONDS: Final = 1.5


class Nursery:
    """Owns a nursery's process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.lives.nursery"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, *order: object) -> None:
        """Have lives lived: `[socket, engine, seed, first, count]`."""
        assert self._process.stdin
        print(json.dumps(order), file=self._process.stdin, flush=True)

    def done(self, seconds: float) -> bool:
        """Wait for the answer."""
        assert self._process.stdout
        return bool(select.select([self._process.stdout], [], [], seconds)[0])

    def tally(self) -> Tally:
        """The answer."""
        assert self._process.stdout
        return Tally(**json.loads(self._process.stdout.readline()))

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()


class Campaign:
    """Fills `figures`. The log is in the directory `audit`, of which the caller disposes; as many lives
    go on at once as there are `nurseries`."""

    def __init__(self, seed: str, engine: str, audit: Path, nurseries: Sequence[Nursery]) -> None:
        self.figures = Figures(seed, engine)
        self._audit = audit
        self._nurseries = nurseries
        self._chance = Random(seed)
        self._born = 0

    def run(self, cores: int, lives: int) -> Figures:
        """So many cores, one after the other, each with so many lives; all but the last are killed in
        the midst of as many more. AssertionError for what is left."""
        began, before = monotonic(), shmem()
        for number in range(cores):
            self._generation(lives // len(self._nurseries), dies=number < cores - 1)
        self.figures.seconds = monotonic() - began
        self.figures.shmem_delta = shmem() - before
        self._check_log()
        return self.figures

    def _generation(self, lives: int, dies: bool) -> None:
        core = RunningCore("--audit-directory", str(self._audit))
        stubs = Stubs(core.socket)
        try:
            digits = core_digits(stubs)
            before = look(core.process.pid, digits)
            self._lives(core, stubs, lives)
            nothing_left(core, stubs, digits, before)
            self._verify(stubs)
            if dies:
                self._lives(core, stubs, lives, dies=True)
                self._kill(core)
                eventually(
                    lambda: not holders_of_memory(digits),
                    lambda: f"core was killed, but: {holders_of_memory(digits)}",
                    LEFT_SECONDS,
                )
            else:
                core.stop()
            assert "defect" not in core.log(), core.log()
            assert "Traceback" not in core.log(), core.log()
        finally:
            stubs.close()
            core.close()
        self.figures.cores += 1

    def _lives(
        self,
        core: RunningCore,
        stubs: Stubs,
        lives: int,
        dies: bool = False,
    ) -> None:
        """Some in each nursery, while engines are killed, and core in the end if it `dies`."""
        for nursery in self._nurseries:
            nursery.begin(
                str(core.socket), self.figures.engine, self.figures.seed, self._born, lives
            )
            self._born += lives
        death = monotonic() + self._chance.uniform(0, DIES_WITHIN_SECONDS) if dies else math.inf
        for nursery in self._nurseries:
            while not nursery.done(self._chance.uniform(0, ENGINE_KILLED_EVERY_SECONDS)):
                if monotonic() > death:
                    self._kill(core)
                else:
                    self._kill_an_engine(core)
                    self._verify(stubs)
            self.figures.lives.add(nursery.tally())
        assert not self.figures.lives.defects, "\n".join(self.figures.lives.defects)

    def _verify(self, stubs: Stubs) -> None:
        """Core's books agree with engines and kernel at any moment, not in the end only."""
        found = stubs.verify().discrepancies
        assert not found, found
        self.figures.verified += 1

    def _kill(self, core: RunningCore) -> None:
        """Its engines end with it, although nobody tells them."""
        if core.process.poll() is not None:
            return
        engines = []
        for pid in core.engine_pids():
            with suppress(ProcessLookupError):
                engines.append(os.pidfd_open(pid))
        core.kill()
        core.socket.unlink()  # so that nurseries know
        self.figures.cores_killed += 1
        for handle in engines:
            assert select.select([handle], [], [], LEFT_SECONDS)[0], "an engine outlived core"
            os.close(handle)

    def _kill_an_engine(self, core: RunningCore) -> None:
        """One that is reaped at this very moment is none of core's children any more."""
        with suppress(OSError):
            pid = self._chance.choice([*core.engine_pids(), 0])
            if not pid:
                return
            handle = os.pidfd_open(pid)
            try:
                if pid in core.engine_pids():
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    self.figures.engines_killed += 1
            finally:
                os.close(handle)

    def _check_log(self) -> None:
        """The whole of it, by itself: each object that began has ended, and the chain is one."""
        checked = verify_chain(self._audit)
        assert checked.discrepancies == []
        begun = [each for each in Query(self._audit).totals() if each.created != each.ended]
        assert begun == [], "no end of these is in the log"
        self.figures.events = checked.events
        memory = [each for each in Query(self._audit).totals() if each.kind in MEMORY]
        self.figures.dataspaces = sum(each.created for each in memory)
