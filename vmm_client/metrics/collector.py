"""The metrics: their names, what they mean, and what they are labelled with.

How many series there can be is bounded: labels are engines, services and users, never sessions, and of
users the largest.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

import grpc
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from vmsession.v1.audit_pb2 import GroupTotal

from vmm_client.metrics.counted import OTHERS, USERS, Counted
from vmm_client.metrics.look import Look, Reader

NAMESPACE: Final = "vmsession"

WHOLE: Final = {
    "clients": ("Clients now.", "clients"),
    "dataspaces": ("Dataspaces alive or held now.", "live"),
    "dataspace_bytes": ("Bytes of dataspaces alive or held now.", "live_bytes"),
    "held_bytes": ("Bytes freed by their owner and still held by somebody.", "held_bytes"),
    "engine_processes": ("Engine processes now; operators only.", "engine_processes"),
    "extra_fds": ("Descriptors that core holds for clients; operators only.", "extra_fds"),
}
GROWING: Final = {
    "dataspaces_created": ("Dataspaces ever created, since the log began.", "created"),
    "dataspaces_freed": ("Dataspaces ever freed, since the log began.", "freed"),
    "audit_events": ("Events in the audit log: its revision.", "revision"),
}
BY_USER: Final[dict[str, tuple[str, Callable[[GroupTotal], int]]]] = {
    "user_ram_used_bytes": ("RAM charged to a user.", lambda group: group.ram.used),
    "user_ram_peak_bytes": ("The most RAM that was charged.", lambda group: group.ram.peak),
    "user_ram_limit_bytes": ("RAM that may be charged.", lambda group: group.ram.limit),
    "user_capabilities_used": ("Capabilities charged.", lambda group: group.capabilities.used),
    "user_capabilities_limit": ("The most that may be.", lambda group: group.capabilities.limit),
    "user_committed_bytes": ("Bytes backed by memory now.", lambda group: group.committed_bytes),
    "user_held_bytes": ("Bytes freed and still held.", lambda group: group.held_bytes),
}


class CoreCollector(Collector):
    """Looks at core once for each scrape, and tells `vmsession_up` 0 where none answers. Any thread."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._counted = Counted()
        self._one_at_a_time = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        with self._one_at_a_time:
            try:
                look = self._reader.look()
            except grpc.RpcError:
                yield _gauge("up", "Whether core answered.", 0)
                return
            self._counted.add(look.vcpus)
            yield _gauge("up", "Whether core answered.", 1)
            yield from _of_core(look)
            yield from _of_sessions(look)
            yield from self._of_vcpus()
            yield from _of_users(look)

    def _of_vcpus(self) -> Iterator[Metric]:
        exits = _counter("exits", "Exits of vCPUs, as far as was seen.", ("engine", "uid"))
        run_time = _counter("run_time_seconds", "CPU time of vCPUs' threads.", ("engine", "uid"))
        for (engine, uid), count in self._counted.exits.items():
            exits.add_metric((engine, uid), count)
        for (engine, uid), spent in self._counted.run_time_ns.items():
            run_time.add_metric((engine, uid), spent / 1e9)
        yield exits
        yield run_time


def _of_core(look: Look) -> Iterator[Metric]:
    info = GaugeMetricFamily(f"{NAMESPACE}_core_info", "Which core.", labels=("version",))
    info.add_metric((look.info.version,), 1)
    yield info
    yield _gauge("draining", "Whether core takes no new sessions.", look.info.draining)
    serving = GaugeMetricFamily(
        f"{NAMESPACE}_serving", "Whether health checks say SERVING.", labels=("service",)
    )
    for service, serves in look.serving.items():
        serving.add_metric((service,), serves)
    yield serving
    for name, (text, field) in WHOLE.items():
        yield _gauge(name, text, getattr(look.totals, field))
    for name, (text, field) in GROWING.items():
        counter = _counter(name, text)
        counter.add_metric((), getattr(look.totals, field))
        yield counter


def _of_sessions(look: Look) -> Iterator[Metric]:
    sessions = Counter((each.engine, str(each.client.uid)) for each in look.sessions)
    vcpus = Counter((each.engine, str(each.client.uid)) for each, _ in look.vcpus)
    for name, text, counts in (
        ("sessions", "Sessions now.", sessions),
        ("vcpus", "vCPUs now.", vcpus),
    ):
        gauge = GaugeMetricFamily(f"{NAMESPACE}_{name}", text, labels=("engine", "uid"))
        for labels, count in _bounded(counts, _known(look)).items():
            gauge.add_metric(labels, count)
        yield gauge


def _of_users(look: Look) -> Iterator[Metric]:
    known = _known(look)
    for name, (text, value_of) in BY_USER.items():
        sums: Counter[str] = Counter()
        for group in look.totals.groups:
            sums[group.group if group.group in known else OTHERS] += value_of(group)
        gauge = GaugeMetricFamily(f"{NAMESPACE}_{name}", text, labels=("uid",))
        for uid, value in sums.items():
            gauge.add_metric((uid,), value)
        yield gauge


def _known(look: Look) -> set[str]:
    """The users who have series of their own: those with the most RAM."""
    largest = sorted(look.totals.groups, key=lambda group: (-group.ram.used, group.group))
    return {group.group for group in largest[:USERS]}


def _bounded(counts: Counter[tuple[str, str]], known: set[str]) -> Counter[tuple[str, str]]:
    sums: Counter[tuple[str, str]] = Counter()
    for (engine, uid), count in counts.items():
        sums[engine, uid if uid in known else OTHERS] += count
    return sums


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{NAMESPACE}_{name}", text, value=value)


def _counter(name: str, text: str, labels: tuple[str, ...] = ()) -> CounterMetricFamily:
    return CounterMetricFamily(f"{NAMESPACE}_{name}", text, labels=labels)
