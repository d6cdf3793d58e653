"""What changed while no core ran: the next one goes on with what fits, and ends and reports the rest."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from core_service.keeper.wire import packed, receive
from tests.integration.running_core import RunningCore
from tests.integration.test_adoption import kept
from tests.integration.victim import Victim
from tests.integration.waiting import eventually
from tests.security.actor import ALICE, BOB, Actor
from vmm_client import connect
from vmm_client.errors import Refused

__all__ = ["kept"]

PAGE = 4096
MIB = 1 << 20


class Records:
    """What a keeper has, as the next core sees it: this is one that may change it."""

    def __init__(self, core: RunningCore) -> None:
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.connect(os.fspath(core.directory / "keeper.sock"))
        self._connection.settimeout(10)
        self.values: dict[str, Any] = {}
        self._fds: dict[str, list[int]] = {}
        while (received := receive(self._connection)) and received[0]["op"] != "ready":
            key = received[0]["key"]
            self.values[key], self._fds[key] = received[0]["value"], received[1]

    def of(self, kind: str) -> list[str]:
        """The keys that begin so."""
        return [key for key in self.values if key.startswith(kind)]

    def change(self, key: str, value: Any) -> None:
        """Another value, with the same fds."""
        packet = packed({"op": "put", "key": key, "value": value})
        socket.send_fds(self._connection, [packet], self._fds[key])

    def drop(self, key: str) -> None:
        """No such record any more."""
        self._connection.send(packed({"op": "drop", "key": key}))

    def close(self) -> None:
        """The keeper waits for the next core."""
        for fds in self._fds.values():
            for fd in fds:
                os.close(fd)
        self._connection.close()


@contextmanager
def records(core: RunningCore) -> Iterator[Records]:
    """Of a core that was killed."""
    opened = Records(core)
    try:
        yield opened
    finally:
        opened.close()


def ended(pid: int) -> bool:
    """Whether a process that core does not reap is no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def start(core: RunningCore) -> None:
    """The next core."""
    core.restart(signal.SIGCONT)


def test_the_keeper_has_no_more_than_there_is(kept: RunningCore) -> None:
    first, second, third = (connect(str(kept.socket)) for _ in range(3))
    with first, third:
        memory = third.create_ram(PAGE)
        second.close()
        for _ in range(3):
            kept.restart(signal.SIGKILL)
            assert memory.read(0, 1) == b"\0"
        kept.kill()
        with records(kept) as left:
            assert len(left.of("channel:")) == 2
            assert len(left.of("listening:")) == 2
            assert left.of("memory:") == [f"memory:{memory.name}"]
            assert left.of("underway:") == []
            assert len(left.of("answer:")) == 1
            assert len(left.values) == 8  # and the client, and the format
        start(kept)


def without(*keys: str) -> Callable[[dict[str, Any]], Any]:
    return lambda value: {key: each for key, each in value.items() if key not in keys}


def of_another_channel(value: dict[str, Any]) -> Any:
    """Its engine speaks the protocol of another core's version."""
    engine, pid, greeting = value["engine"]
    raw = bytearray.fromhex(greeting)
    raw[8] += 1
    return value | {"engine": [engine, pid, raw.hex()]}


@pytest.mark.parametrize(
    "edit",
    [
        without("quota"),
        without("client"),
        without("vcpu_limit"),
        lambda value: None,
        of_another_channel,
    ],
    ids=["no quota", "no client", "no limit", "nothing", "other channel"],
)
def test_a_session_that_cannot_be_taken_over_ends_alone(
    kept: RunningCore, edit: Callable[[dict[str, Any]], Any]
) -> None:
    with connect(str(kept.socket)) as connection:
        memory, other = connection.create_ram(PAGE), connection.create_ram(PAGE)
        lost, goes_on = (connection.create_session("soft") for _ in range(2))
        for session in (lost, goes_on):
            session.attach(memory, 0)
            session.create_vcpu()
        engines = {each.name: each.engine_pid for each in connection.sessions()}
        kept.kill()
        with records(kept) as changed:
            changed.change(lost.name, edit(changed.values[lost.name]))
        start(kept)
        assert [each.name for each in connection.sessions()] == [goes_on.name]
        eventually(lambda: ended(engines[lost.name]))
        assert "cannot adopt" in kept.log()
        assert lost.name in kept.log()
        assert [e.kind for e in connection.events(subject=lost.name)][-1] == "lost"
        goes_on.attach(other, 0x10000)
        kept.must_agree()
        kept.restart(signal.SIGKILL)
        assert [each.name for each in connection.sessions()] == [goes_on.name]
        kept.must_agree()
        with pytest.raises(Refused) as refused:
            lost.create_vcpu(1)
        assert refused.value.reason == "NOT_FOUND"


def test_an_engine_that_died_meanwhile(kept: RunningCore) -> None:
    with connect(str(kept.socket)) as connection:
        session, other = (connection.create_session("soft") for _ in range(2))
        session.create_vcpu()
        (dies, _) = (each.engine_pid for each in connection.sessions())
        kept.kill()
        os.kill(dies, signal.SIGKILL)
        start(kept)
        eventually(lambda: [each.name for each in connection.sessions()] == [other.name])
        with pytest.raises(Refused) as refused:
            session.create_vcpu(1)
        assert refused.value.reason == "ENGINE_DIED"
        kept.must_agree()


def test_a_client_that_died_meanwhile(kept: RunningCore) -> None:
    with Victim(kept, "soft") as victim, connect(str(kept.socket)) as connection:
        (engine,) = (each.engine_pid for each in connection.sessions())
        kept.kill()
        victim.process.kill()
        victim.process.wait(10)
        start(kept)
        eventually(lambda: not list(connection.sessions()))
        eventually(lambda: connection.totals().live == 0)
        assert ended(engine)
        last = [each for each in connection.events(subject=victim.session) if each.kind == "closed"]
        assert [each.cause for each in last] == ["client process ended"]
        kept.must_agree()


@pytest.mark.parametrize("part", ["vcpu:", "attachment:", "memory:"])
def test_a_session_of_which_a_part_is_missing_ends(kept: RunningCore, part: str) -> None:
    with connect(str(kept.socket)) as connection:
        session, other = (connection.create_session("soft") for _ in range(2))
        session.attach(connection.create_ram(PAGE), 0)
        session.create_vcpu()
        other.attach(connection.create_ram(PAGE), 0)
        (engine, _) = (each.engine_pid for each in connection.sessions())
        kept.kill()
        with records(kept) as changed:
            changed.change(changed.of(part)[0], {"of": "another version"})
        start(kept)
        assert [each.name for each in connection.sessions()] == [other.name]
        eventually(lambda: ended(engine))
        last = list(connection.events(subject=session.name))[-1]
        assert (last.kind, last.cause) == ("closed", "a part of it could not be taken over")
        kept.must_agree()


def test_records_of_another_format_end_and_are_reported(kept: RunningCore) -> None:
    with connect(str(kept.socket)) as connection:
        session, memory = connection.create_session("soft"), connection.create_ram(PAGE)
        (engine,) = (each.engine_pid for each in connection.sessions())
        kept.kill()
        with records(kept) as changed:
            changed.change("format", 1_000_000)
        start(kept)
        eventually(lambda: ended(engine))
    assert "records of another version of core" in kept.log()
    with connect(str(kept.socket)) as connection:  # the old one saw the end of its fd channel
        for name in (session.name, memory.name):
            assert [each.kind for each in connection.events(subject=name)][-1] == "lost"
        kept.must_agree()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_who_is_let_in_no_more_keeps_what_he_has(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text("[[allow]]\nclient_ram = '2 MiB'\n")
    core = RunningCore("--keep", "30", "--policy", str(file))
    try:
        with Actor(core, ALICE) as alice:
            owned = alice("own")
            assert alice("memory") != "OUT_OF_RAM"
            file.write_text(f"[[allow]]\nusers = [{BOB}]\n")
            core.process.send_signal(signal.SIGHUP)
            eventually(lambda: "policy changed" in core.log())
            assert alice("memory") == "OUT_OF_RAM"
            core.restart(signal.SIGKILL)
            with connect(str(core.socket)) as operator:
                assert [each.name for each in operator.sessions()] == [owned["session"]]
                (group,) = [
                    each for each in operator.totals("uid").groups if each.group == str(ALICE)
                ]
                assert (group.live, group.ram.limit) == (2, 0)
        core.stop()
    finally:
        core.close()


def must_not_start(core: RunningCore, why: str) -> None:
    """The next core, which ends before it serves."""
    with pytest.raises(AssertionError):
        start(core)
    assert core.process.wait(40) == 1
    assert why in core.log()


def test_a_core_that_cannot_start_leaves_all_to_the_next_one(kept: RunningCore) -> None:
    with connect(str(kept.socket)) as connection:
        session, memory = connection.create_session("soft"), connection.create_ram(PAGE)
        memory.write(0, b"goes on")
        kept.kill()
        kept.audit.rename(kept.audit.with_name("away"))
        kept.audit.touch()  # no directory
        must_not_start(kept, "audit")
        kept.audit.unlink()
        kept.audit.with_name("away").rename(kept.audit)
        kept.socket.unlink()
        with records(kept) as changed:  # so that core must bind
            for name in ("listening:core", "listening:fds"):
                changed.drop(name)
        kept.socket.mkdir()
        must_not_start(kept, "core.sock")
        kept.socket.rmdir()
        start(kept)
        session.attach(memory, 0)
        assert [each.name for each in connection.sessions()] == [session.name]
        assert memory.read(0, 7) == b"goes on"
        kept.must_agree()
