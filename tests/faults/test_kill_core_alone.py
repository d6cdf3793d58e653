"""kill -9 of core, without a keeper, at every step of every operation: nothing is left on the host,
and the next core says that it is lost before it serves."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random

import pytest

from core_service.audit import Query, verify_chain
from tests.faults.bystander import Bystander
from tests.faults.killings import Act, must_be_sound
from tests.faults.operations import OPERATIONS, Actor, Operation
from tests.faults.shim import Shim
from tests.integration.lives.left import core_digits
from tests.integration.lives.traces import holders_of_memory
from tests.integration.running_core import RunningCore, Stubs
from tests.integration.waiting import eventually
from vmm_client import connect
from vmm_client.errors import CoreUnavailable, SessionEnded

GONE_SECONDS = 10.0
THE_BYSTANDERS = 3  # session, memory and vCPU with its page
FEWEST = 8  # deeds of any operation, or about that
each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=str)


class Alone:
    """A core with a shim and no keeper."""

    def __init__(self, shim: Shim, directory: Path) -> None:
        self.rom = directory / "roms" / "bios"
        self.rom.parent.mkdir()
        self.rom.write_bytes(b"rom")
        policy = directory / "policy.toml"
        policy.write_text(f'[[allow]]\nrom_paths = ["{self.rom.parent}"]\n')
        self.shim = shim
        self.core: RunningCore = shim.core("--policy", str(policy))

    def kill_at(self, operation: Operation, deed: int) -> bool:
        """Before that deed, or after the answer; False if there are fewer. Then the next one starts."""
        stubs = Stubs(self.core.socket)
        digits = core_digits(stubs)
        stubs.close()
        with ExitStack() as clients:
            bystander = clients.enter_context(Bystander(self.core.socket))
            client = connect(str(self.core.socket))
            clients.callback(client.close)
            actor = Actor(client, bystander, self.rom)
            prepared = operation.prepare(actor)
            lived = [each.name for each in client.sessions()]
            lived += [each.name for each in client.records(alive_only=True)]
            engines = [os.pidfd_open(pid) for pid in self.core.engine_pids()]
            self.shim.arm("core", deed)
            act = Act(lambda: operation.act(actor, prepared))
            eventually(lambda: act.over() or self.core.process.poll() is not None)
            reached = self.shim.disarm("core") >= deed
            self.core.kill()
            assert act.over(GONE_SECONDS)
            assert act.error is None or isinstance(act.error, CoreUnavailable | SessionEnded)
            for engine in engines:
                assert select.select([engine], [], [], GONE_SECONDS)[0], "an engine outlived core"
                os.close(engine)
            actor.drop()
        eventually(lambda: not holders_of_memory(digits), lambda: f"{holders_of_memory(digits)}")
        self.core.restart(signal.SIGKILL)
        self._must_have_lost_all(lived)
        return reached

    def _must_have_lost_all(self, lived: list[str]) -> None:
        with connect(str(self.core.socket)) as client:
            assert [each.name for each in client.sessions()] == []
            assert [each.name for each in client.records(alive_only=True)] == []
            assert not client.verify(whole_chain=True).discrepancies
            ends = {name: client.history(name).events[-1].kind for name in lived}
            assert set(ends.values()) <= {"lost", "closed", "freed"}, ends
            assert list(ends.values()).count("lost") >= THE_BYSTANDERS
        must_be_sound(self.core)

    def stop(self) -> None:
        self.core.stop()
        assert verify_chain(self.core.audit).discrepancies == []
        assert [
            each for each in Query(self.core.audit).totals() if each.created != each.ended
        ] == []


@pytest.fixture(scope="module")
def alone(shim_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alone]:
    directory = tmp_path_factory.mktemp("alone")
    alone = Alone(Shim(shim_library, directory), directory)
    try:
        yield alone
        alone.stop()
    finally:
        with suppress(ProcessLookupError):
            alone.core.close()


@pytest.mark.parametrize("operation", OPERATIONS[::3], ids=str)
def test_core_is_killed_at_some_step(alone: Alone, operation: Operation) -> None:
    alone.kill_at(operation, Random(f"{operation}").randint(1, FEWEST))


@pytest.mark.soak
@each_operation
def test_core_is_killed_at_every_step(alone: Alone, operation: Operation) -> None:
    deed = 1
    while alone.kill_at(operation, deed):
        deed += 1
    assert deed > 1
    print(f"\n{operation}: core killed before each of {deed - 1} deeds, and after them")
