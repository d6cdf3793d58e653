"""SIGSTOP of who takes part: others are served as before; an engine that does not answer is ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vmsession.v1.vm_session_pb2 import GetSessionRequest, PauseRequest

from core_service.engine.process import ANSWER_LIMIT
from core_service.settings import Settings
from tests.faults.books import books
from tests.faults.bystander import Bystander
from tests.faults.killings import Act
from tests.hostile.witness import Witness
from tests.integration.running_core import RunningCore
from tests.integration.waiting import eventually
from vmm_client import Connection, Ram, Session, connect
from vmm_client.errors import Refused

PAGE = 4096
EVENTS = 1500  # more than core keeps for those who watch
OTHERS_SECONDS = 3.0  # for one answer to somebody else, on a busy machine
SLACK_SECONDS = 5.0
UNANSWERED = f"it did not answer within {ANSWER_LIMIT:g} s"


@contextmanager
def others_are_served(core: RunningCore) -> Iterator[None]:
    """While the block runs, somebody else is."""
    witness = Witness(core.socket)
    try:
        yield
        sight = witness.end()
    finally:
        witness.close()
    assert sight.wrong == []
    assert sight.calls
    assert sight.worst < OTHERS_SECONDS


def test_a_vmm_that_is_stopped_keeps_what_it_has_and_nobody_waiting(core: RunningCore) -> None:
    with connect(str(core.socket)) as client, Bystander(core.socket, os.geteuid()) as stopped:
        stopped.leaves_all_unread()
        before = books(client)
        os.kill(stopped.pid, signal.SIGSTOP)
        with others_are_served(core):
            for _ in range(EVENTS // 2):
                client.create_ram(PAGE).close()
        eventually(lambda: books(client) == before)  # when the witness is gone, too
        os.kill(stopped.pid, signal.SIGCONT)
        stopped.must_read_all()
        stopped.must_go_on()
        os.kill(stopped.pid, signal.SIGSTOP)
        os.kill(stopped.pid, signal.SIGKILL)
        eventually(lambda: books(client)["totals"] == (0, 0, 0, 0, 0, 0))


class Victim:
    """A session with an engine that is stopped in the midst of its work."""

    def __init__(self, client: Connection, label: str) -> None:
        self.client = client
        self.session: Session = client.create_session("soft", label=label)
        self.ram: Ram = client.create_ram(4 * PAGE)
        self.session.attach(self.ram, 0)
        self.session.create_vcpu()
        request = GetSessionRequest(name=self.session.name)
        self.pid = client.rpc.call(client.vm_sessions.GetSession, request).session.engine_pid
        os.kill(self.pid, signal.SIGSTOP)

    def pause(self) -> None:
        request = PauseRequest(vcpu=f"{self.session.name}/vcpus/0")
        self.client.rpc.call(self.client.vm_sessions.Pause, request)

    def end(self) -> str:
        """The cause of its end that the audit tells."""
        return self.client.history(self.session.name).events[-1].cause


def test_an_engine_that_is_stopped_is_ended_and_its_session_alone(core: RunningCore) -> None:
    asked: dict[str, Callable[[Victim], object]] = {
        "Attach": lambda victim: victim.session.attach(victim.ram, 0x10000),
        "Detach": lambda victim: victim.session.detach(0, PAGE),
        "Pause": Victim.pause,
        "FreeDataspace": lambda victim: victim.ram.close(),
    }
    with connect(str(core.socket)) as client:
        victims = {name: Victim(client, name) for name in asked}
        deleted = Victim(client, "DeleteSession")
        with others_are_served(core):
            began = time.monotonic()
            acts = {
                name: Act(lambda call=call, name=name: call(victims[name]))  # type: ignore[misc]
                for name, call in asked.items()
            }
            deleted.session.close()  # SIGKILL insists
            assert time.monotonic() - began < Settings().engine_stop_limit + SLACK_SECONDS
            for name, act in acts.items():
                assert act.over(ANSWER_LIMIT + SLACK_SECONDS), f"{name} is not over"
        assert deleted.end() == "session deleted"
        for name, act in acts.items():
            if name == "FreeDataspace":  # it is freed all the same
                assert act.error is None
            else:
                assert isinstance(act.error, Refused), name
                assert act.error.reason == "ENGINE_DIED"
                assert act.error.metadata["why"] == UNANSWERED
            eventually(lambda name=name: victims[name].end() == f"engine ended: {UNANSWERED}")  # type: ignore[misc]
        freed = client.history(victims["FreeDataspace"].ram.name).events
        assert [each.kind for each in freed] == ["created", "attached", "detached", "freed"]
        assert len(core.engine_pids()) == 0
