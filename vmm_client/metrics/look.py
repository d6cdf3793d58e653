"""One look at core: all that metrics are made of. Takes no lease, makes nothing, never waits long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from vmsession.v1.audit_pb2 import GROUPING_UID, GetTotalsRequest, GetTotalsResponse
from vmsession.v1.audit_pb2_grpc import AuditServiceStub
from vmsession.v1.core_pb2 import GetInfoRequest, GetInfoResponse
from vmsession.v1.core_pb2_grpc import CoreServiceStub
from vmsession.v1.vm_session_pb2 import ListSessionsRequest, ListVcpusRequest, Session, Vcpu
from vmsession.v1.vm_session_pb2_grpc import VmSessionServiceStub

from vmm_client.health import SERVICES, WHOLE

LOOK_SECONDS: Final = 8.0  # of the ten that Prometheus gives a scrape by default
SESSIONS_A_PAGE: Final = 1000
CALLS_AT_ONCE: Final = 32
OPTIONS: Final = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found; `vcpus` with the session of each."""

    info: GetInfoResponse
    serving: dict[str, bool]
    totals: GetTotalsResponse
    sessions: list[Session]
    vcpus: list[tuple[Session, Vcpu]]


class Reader:
    """Owns the channel to the core at one path, whether one is there or not."""

    def __init__(self, path: str) -> None:
        target = f"unix://{quote(str(Path(path).absolute()))}"
        self._channel = grpc.insecure_channel(target, OPTIONS)
        self._core = CoreServiceStub(self._channel)
        self._audit = AuditServiceStub(self._channel)
        self._vm_sessions = VmSessionServiceStub(self._channel)
        self._health = HealthStub(self._channel)

    def look(self) -> Look:
        """See what is there. Raises grpc.RpcError when core does not tell all of it in time."""
        end = time.monotonic() + LOOK_SECONDS
        info = self._core.GetInfo(GetInfoRequest(), timeout=_until(end))
        serving = dict(self._serving(end))
        totals = self._audit.GetTotals(GetTotalsRequest(group_by=GROUPING_UID), timeout=_until(end))
        sessions = list(self._sessions(end))
        return Look(info, serving, totals, sessions, list(self._vcpus(sessions, end)))

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def _serving(self, end: float) -> Iterator[tuple[str, bool]]:
        check: Any = self._health.Check  # type: ignore[attr-defined] # not in its stubs
        for name, service in {WHOLE: "", **SERVICES}.items():
            answer = check(HealthCheckRequest(service=service), timeout=_until(end))
            yield name, answer.status == HealthCheckResponse.SERVING

    def _sessions(self, end: float) -> Iterator[Session]:
        request = ListSessionsRequest(page_size=SESSIONS_A_PAGE)
        while True:
            page = self._vm_sessions.ListSessions(request, timeout=_until(end))
            yield from page.sessions
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _vcpus(self, sessions: list[Session], end: float) -> Iterator[tuple[Session, Vcpu]]:
        """Those of sessions that end meanwhile are left out."""
        left = iter(sessions)
        while some := list(islice(left, CALLS_AT_ONCE)):
            calls = [
                self._vm_sessions.ListVcpus.future(
                    ListVcpusRequest(session=session.name), timeout=_until(end)
                )
                for session in some
            ]
            for session, call in zip(some, calls, strict=True):
                if call.code() is grpc.StatusCode.NOT_FOUND:
                    continue
                yield from ((session, vcpu) for vcpu in call.result().vcpus)


def _until(end: float) -> float:
    return max(0.001, end - time.monotonic())
