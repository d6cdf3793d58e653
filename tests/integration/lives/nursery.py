"""A process that gives birth to clients and kills them. It imports everything once and forks, so that a
life costs milliseconds.

Each line of its input is an order as JSON: `[socket, engine, seed, first, count]`. That many lives
follow each other, and a line answers with their `Tally`.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final, NoReturn

from tests.integration.lives.life import Life
from tests.integration.running_core import OTHER_USER, become_other_user
from vmm_client import VmsessionError, connect

PR_SET_CHILD_SUBREAPER: Final = 36
USERS: Final = (OTHER_USER, OTHER_USER + 1) if os.geteuid() == 0 else (os.geteuid(),)
KILLED, LEAVES, CLOSES = "killed", "left everything", "closed everything"
ENDS: Final = (KILLED, KILLED, LEAVES, CLOSES)
KILLED_WITHIN_SECONDS: Final = 0.4
STUCK_SECONDS: Final = 30.0
DEEDS: Final = 30
DEEDS_UNTIL_KILLED: Final = 1000  # what they tell fits into a pipe


@dataclass
class Tally:
    """How lives ended, what they did, and what should never happen."""

    ends: Counter[str] = field(default_factory=Counter)
    deeds: Counter[str] = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count what another counted."""
        self.ends.update(other.ends)
        self.deeds.update(other.deeds)
        self.defects.extend(other.defects)


def main() -> None:
    """The process itself. What its children leave behind becomes its own child."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for line in sys.stdin:
        socket, engine, seed, first, count = json.loads(line)
        tally = Tally()
        for number in range(first, first + count):
            if not Path(socket).exists():
                break
            one_life(socket, engine, Random(f"{seed}/{number}"), tally)
        print(json.dumps(vars(tally)), flush=True)


def one_life(socket: str, engine: str, chance: Random, tally: Tally) -> None:
    """Fork a client, see to its end, and count it."""
    end = chance.choice(ENDS)
    seconds = chance.uniform(0, KILLED_WITHIN_SECONDS) if end == KILLED else STUCK_SECONDS
    told, telling = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(told)
        _be_client(socket, engine, chance, end, telling)
    os.close(telling)
    handle = os.pidfd_open(pid)
    ended, _, _ = select.select([handle], [], [], seconds)
    os.close(handle)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    lines = _all_of(told).splitlines()
    tally.deeds.update(line for line in lines if not line.startswith("!"))
    tally.defects += [line for line in lines if line.startswith("!")]
    if end != KILLED and not ended:
        tally.defects.append(f"! stuck for {seconds} s after {lines[-1:]}")
    tally.ends[end if ended or end == KILLED else "stuck"] += 1
    _reap()


def _be_client(socket: str, engine: str, chance: Random, end: str, telling: int) -> NoReturn:
    def tell(what: str) -> None:
        os.write(telling, f"{what}\n".encode())

    try:
        become_other_user(chance.choice(USERS))
        core = connect(socket)
        deeds = DEEDS_UNTIL_KILLED if end == KILLED else DEEDS
        Life(core, engine, USERS, chance, tell).live(deeds)
        if end == CLOSES:
            core.close()
    except VmsessionError as error:
        tell(f"ended by {type(error).__name__}")
    except BaseException:  # whatever it is, the test must hear of it
        tell("! " + traceback.format_exc().replace("\n", " | "))
    finally:
        os._exit(0)


def _all_of(pipe: int) -> str:
    with os.fdopen(pipe) as file:
        return file.read()


def _reap() -> None:
    """The processes that clients left behind, as far as they ended."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    main()
