"""Core is killed before any of its deeds while it does what a client asked; the next one goes on."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from core_service.audit import Query, verify_chain
from tests.faults.books import books
from tests.faults.bystander import Bystander
from tests.faults.operations import Actor, Operation
from tests.faults.shim import Shim
from tests.integration.running_core import RunningCore
from tests.integration.test_adoption import keeper_of
from tests.integration.waiting import eventually
from vmm_client import Connection, connect

KEEP: Final = "30"
ANSWER_SECONDS: Final = 25.0
AT_REST: Final = 20  # looks, one after the other
SETTLE_SECONDS: Final = 10.0
TROUBLE: Final = ("defect", "reclaiming failed", "Traceback", "never retrieved", "cannot adopt")


def must_be_sound(core: RunningCore, told: str = "") -> None:
    """Its log has no trouble."""
    log = core.log()
    for trouble in TROUBLE:
        assert trouble not in log, f"{told}\n{log}"


class Act(threading.Thread):
    """A client's call, on a thread of its own."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self.error = error

    def over(self, seconds: float = 0) -> bool:
        self.join(seconds)
        return not self.is_alive()

    def must_succeed(self, told: Callable[[], str]) -> None:
        assert self.over(ANSWER_SECONDS), f"not answered\n{told()}"
        if self.error:
            raise AssertionError(f"{self.error!r}\n{told()}") from self.error


class Repeats:
    """Remembers the last call of a connection, and its answer."""

    def __init__(self, core: Connection) -> None:
        self._call = core.rpc.call
        self._last: tuple[Any, Any, Any] | None = None
        core.rpc.call = self._remembered  # type: ignore[method-assign,assignment]

    def _remembered(self, method: Any, request: Any, *rest: Any) -> Any:
        answer = self._call(method, request, *rest)
        if getattr(request, "request_id", ""):
            self._last = method, request, answer
        return answer

    def forget(self) -> None:
        self._last = None

    def must_give_the_same(self) -> bool:
        """The same request again has the same answer; True if there was one."""
        if self._last is None:
            return False
        method, request, answer = self._last
        assert self._call(method, request) == answer
        return True


class Stage:
    """A core with its keeper and shim, an actor and a bystander."""

    def __init__(self, shim: Shim, directory: Path, cgroup: Path | None = None) -> None:
        rom = directory / "roms" / "bios"
        rom.parent.mkdir()
        rom.write_bytes(b"rom")
        policy = directory / "policy.toml"
        policy.write_text(f'[[allow]]\nrom_paths = ["{rom.parent}"]\n')
        self.shim = shim
        self.core: RunningCore = shim.core("--keep", KEEP, "--policy", str(policy), cgroup=cgroup)
        self.bystander = Bystander(self.core.socket)
        self.client = connect(str(self.core.socket))
        self.repeats = Repeats(self.client)
        self.actor = Actor(self.client, self.bystander, rom)
        self.base = books(self.client)
        self._kept = self._keeper_fds_at_rest()

    def stop(self) -> None:
        """All ends in order: the log has the end of everything, and is whole."""
        self.client.close()
        self.bystander.leaves()
        self.core.stop()
        checked = verify_chain(self.core.audit)
        assert checked.discrepancies == []
        assert [
            each for each in Query(self.core.audit).totals() if each.created != each.ended
        ] == []

    def close(self) -> None:
        """Whatever state it is in."""
        with self.bystander:
            self.core.close()

    # -- one operation

    def rehearse(self, operation: Operation, role: str) -> tuple[int, dict[str, object]]:
        """Without a fault: how many deeds there are, and what is there in the end."""
        prepared = operation.prepare(self.actor)
        self.shim.arm(role, 0)
        operation.act(self.actor, prepared)
        deeds = self.shim.disarm(role)
        after = books(self.client)
        self.clean()
        return deeds, after

    def kill_core_at(
        self, operation: Operation, role: str, deed: int, expected: dict[str, object]
    ) -> None:
        """Before that deed, or after the answer if there are fewer this time."""
        prepared = operation.prepare(self.actor)
        self.repeats.forget()
        before = self.client.totals().revision
        self.shim.arm(role, deed)
        act = Act(lambda: operation.act(self.actor, prepared))
        eventually(lambda: act.over() or self.core.process.poll() is not None, limit=ANSWER_SECONDS)
        self.shim.disarm(role)
        self.core.restart(signal.SIGKILL)
        told = f"{operation}, core killed before deed {deed} of {role}"
        act.must_succeed(lambda: f"{told}\n{self.core.log()}")
        self.repeats.must_give_the_same()
        self.must_be(expected, told)
        adopted = [each.label for each in self.client.events(before, kinds=["adopted"])]
        assert adopted.count("bystander") == 1, told
        self.clean()

    def clean(self) -> None:
        self.actor.clean()
        self.must_be(self.base, "left")
        eventually(lambda: self._keeper_fds() == self._kept, lambda: f"{self._keeper_fds()} fds")

    def _keeper_fds(self) -> int:
        """How many the keeper has; 0 for who may not see that."""
        with suppress(PermissionError):
            return sum(1 for _ in Path(f"/proc/{keeper_of(self.core)}/fd").iterdir())
        return 0

    def _keeper_fds_at_rest(self) -> int:
        """The keeper reads when it comes to it."""
        seen = deque([-1, -2], AT_REST)

        def at_rest() -> bool:
            seen.append(self._keeper_fds())
            return len(set(seen)) == 1

        eventually(at_rest)
        return seen[0]

    def must_be(self, expected: dict[str, object], told: str) -> None:
        def different() -> str:
            found = books(self.client)
            return "\n".join(
                f"{key}: {found[key]}\nnot {value}"
                for key, value in expected.items()
                if found[key] != value
            )

        eventually(
            lambda: not different(),
            lambda: f"{told}:\n{different()}\n{self.core.log()}",
            SETTLE_SECONDS,
        )
        self.bystander.must_go_on()
        found = self.client.verify().discrepancies
        assert not found, f"{told}: {found}\n{self.core.log()}"
        must_be_sound(self.core, told)
