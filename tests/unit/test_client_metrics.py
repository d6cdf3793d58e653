"""Core's numbers for Prometheus: counters that never fall, and a bounded number of series."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from threading import Thread

import grpc
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from vmsession.v1.audit_pb2 import GetTotalsResponse, GroupTotal
from vmsession.v1.core_pb2 import ClientIdentity, GetInfoResponse, Quota
from vmsession.v1.vm_session_pb2 import Session, Vcpu

from vmm_client.cli.main import status_of
from vmm_client.metrics import server
from vmm_client.metrics.collector import CoreCollector
from vmm_client.metrics.counted import USERS, Counted
from vmm_client.metrics.look import Look
from vmm_client.metrics.server import http_server


def vcpu(
    name: str, exits: int, uid: int = 1, run_time_ns: int | None = None
) -> tuple[Session, Vcpu]:
    session = Session(engine="soft", client=ClientIdentity(uid=uid))
    return session, Vcpu(name=name, exits=exits, run_time_ns=run_time_ns)


def test_exits_are_added_up_over_vcpus_that_come_and_go() -> None:
    counted = Counted()
    counted.add([vcpu("a", 10), vcpu("b", 5)])
    counted.add([vcpu("b", 7), vcpu("c", 1)])
    counted.add([])
    assert counted.exits == {("soft", "1"): 10 + 7 + 1}


def test_exits_that_wrap() -> None:
    counted = Counted()
    counted.add([vcpu("a", (1 << 32) - 1)])
    counted.add([vcpu("a", 2)])
    assert counted.exits == {("soft", "1"): (1 << 32) + 2}


def test_run_time_never_falls_and_may_be_missing() -> None:
    counted = Counted()
    for told in (5, None, 9, 3, 4):
        counted.add([vcpu("a", 0, run_time_ns=told)])
    assert counted.run_time_ns == {("soft", "1"): 9 + 1}


def test_late_users_share_one_sum_for_good() -> None:
    counted = Counted()
    for _ in range(2):
        counted.add([vcpu(f"{uid}", 1, uid) for uid in range(USERS + 3)])
    assert len(counted.exits) == USERS + 1
    assert counted.exits["soft", "other"] == 3


class Unavailable(grpc.RpcError):
    """What a call to nobody raises."""


class ScriptedReader:
    """Looks that were prepared; None where core does not answer."""

    def __init__(self, *looks: Look | None) -> None:
        self._looks = itertools.chain(looks, itertools.repeat(looks[-1]))

    def look(self) -> Look:
        look = next(self._looks)
        if look is None:
            raise Unavailable
        return look


def look_of(users: int = 1, exits: int = 3) -> Look:
    groups = [
        GroupTotal(
            group=str(uid),
            committed_bytes=1,
            ram=Quota(used=uid, peak=uid, limit=1 << 40),
            capabilities=Quota(used=2, limit=9),
        )
        for uid in range(users)
    ]
    totals = GetTotalsResponse(live=4, live_bytes=4096, revision=77, groups=groups)
    found = [vcpu(f"{uid}", exits, uid, 2_000_000_000) for uid in range(users)]
    sessions = [session for session, _ in found]
    info = GetInfoResponse(version="1.2.3", draining=True)
    return Look(info, {"core": False, "AuditService": True}, totals, sessions, found)


def scraped(*looks: Look | None, times: int = 1) -> dict[str, float]:
    """What the last of some scrapes tells, by series."""
    registry = CollectorRegistry()
    registry.register(CoreCollector(ScriptedReader(*looks)))  # type: ignore[arg-type]
    for _ in range(times - 1):
        list(registry.collect())
    return {
        sample.name + "".join(f",{key}={value}" for key, value in sorted(sample.labels.items())): (
            sample.value
        )
        for family in registry.collect()
        for sample in family.samples
    }


def test_what_a_scrape_tells() -> None:
    told = scraped(look_of(users=2))
    expected = {
        "vmsession_up": 1,
        "vmsession_core_info,version=1.2.3": 1,
        "vmsession_draining": 1,
        "vmsession_serving,service=core": 0,
        "vmsession_serving,service=AuditService": 1,
        "vmsession_dataspaces": 4,
        "vmsession_dataspace_bytes": 4096,
        "vmsession_audit_events_total": 77,
        "vmsession_sessions,engine=soft,uid=1": 1,
        "vmsession_vcpus,engine=soft,uid=1": 1,
        "vmsession_exits_total,engine=soft,uid=1": 3,
        "vmsession_run_time_seconds_total,engine=soft,uid=1": 2,
        "vmsession_user_ram_used_bytes,uid=1": 1,
        "vmsession_user_ram_limit_bytes,uid=1": 1 << 40,
        "vmsession_user_capabilities_used,uid=1": 2,
        "vmsession_user_committed_bytes,uid=0": 1,
    }
    assert expected.items() <= told.items()


def test_core_may_go_and_come() -> None:
    assert scraped(None) == {"vmsession_up": 0}
    assert scraped(look_of(), None, times=2) == {"vmsession_up": 0}
    told = scraped(look_of(exits=5), None, look_of(exits=7), times=3)
    assert told["vmsession_up"] == 1
    assert told["vmsession_exits_total,engine=soft,uid=0"] == 7


def test_many_users_do_not_make_many_series() -> None:
    few, many = scraped(look_of(users=USERS)), scraped(look_of(users=USERS * 5))
    assert len(many) <= len(few) + 20
    assert "vmsession_user_ram_used_bytes,uid=499" in many  # the largest
    assert "vmsession_user_ram_used_bytes,uid=0" not in many
    assert many["vmsession_user_committed_bytes,uid=other"] == USERS * 4
    assert many["vmsession_exits_total,engine=soft,uid=other"] == 3 * USERS * 4


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """Where a server of these metrics listens, for two at once."""
    monkeypatch.setattr(server, "AT_ONCE", 2)
    registry = CollectorRegistry()
    registry.register(CoreCollector(ScriptedReader(None)))  # type: ignore[arg-type]
    with http_server("127.0.0.1", 0, registry) as serving:
        thread = Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield "127.0.0.1", serving.server_port
        serving.shutdown()
        thread.join()


def answer(address: tuple[str, int], request: bytes = b"GET /metrics HTTP/1.0\r\n\r\n") -> bytes:
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(request)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_a_scrape_over_http(address: tuple[str, int]) -> None:
    head, _, body = answer(address).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK")
    (family,) = text_string_to_metric_families(body.decode())
    assert (family.name, family.samples[0].value) == ("vmsession_up", 0)


def test_who_asks_slowly_is_not_many(address: tuple[str, int]) -> None:
    idle = [socket.create_connection(address, timeout=10) for _ in range(2)]
    for connection in idle:
        connection.sendall(b"GET /")
    third = socket.create_connection(address, timeout=10)
    assert third.recv(1) == b""  # at once, not when the others are done
    for connection in (*idle, third):
        connection.close()


@pytest.mark.parametrize("listen", ["9464", "127.0.0.1:", "127.0.0.1:http", "[::1]:65536"])
def test_addresses_that_are_none(capsys: pytest.CaptureFixture[str], listen: str) -> None:
    assert status_of(["metrics", "--listen", listen]) == 1
    assert f"--listen {listen!r} is no address and port" in capsys.readouterr().err


def test_without_core_it_prints_that(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["metrics", "--once", "--socket", "/nonexistent/core.sock"]) == 0
    assert "\nvmsession_up 0.0\n" in capsys.readouterr().out
