"""What a session's engine gets of the host: what its client asked for, within what policy allows."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from core_service.engine.protocol import VCPUS
from core_service.refusal import Refusal, invalid, shortened

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from core_service.policy import SessionLimits

LEAST_PRIORITY: Final = 19
AFFINITY_NUMBERS: Final = 4096
OTHER_THREADS: Final = 8
"""Of an engine, beside its vCPUs': control, kicker, and room for its libraries'."""


@dataclass(frozen=True, slots=True)
class Allotment:
    """`priority` as of nice(1): 0 first, 19 last. No `cpus`: all that core has. `memory` in bytes and
    `cpu` in percent of a CPU hold where the engine has a cgroup, None does not limit; `threads`, too."""

    priority: int = 0
    cpus: frozenset[int] = frozenset()
    memory: int | None = None
    cpu: int | None = None
    threads: int = VCPUS + OTHER_THREADS

    def environment(self) -> dict[str, str]:
        """What an engine needs to know to take its place (native/place.c)."""
        told = {}
        priority = max(self.priority, os.getpriority(os.PRIO_PROCESS, 0))  # nobody may rise again
        if priority:
            told["VMSESSION_PRIORITY"] = str(priority)
        if self.cpus:
            told["VMSESSION_CPUS"] = ",".join(map(str, sorted(self.cpus)))
        return told

    def recorded(self) -> list[Any]:
        """For the keeper."""
        return [self.priority, sorted(self.cpus), self.memory, self.cpu, self.threads]

    @classmethod
    def resumed(cls, recorded: list[Any] | None) -> Self:
        """From the keeper; a core of before did not record any."""
        if recorded is None:
            return cls()
        priority, cpus, memory, cpu, threads = recorded
        return cls(priority, frozenset(cpus), memory, cpu, threads)


def allotted(
    limits: SessionLimits,
    priority: int | None,
    affinity: Collection[int],
    host: frozenset[int] | None = None,
) -> Allotment:
    """For a session that asks for a priority (None: the best that it may have) and for CPUs (none: all
    that it may have). `host` has the CPUs that core may run on. Raises Refusal INVALID_ARGUMENT, DENIED.
    """
    return Allotment(
        _priority(limits, priority),
        _cpus(limits, affinity, host or frozenset(os.sched_getaffinity(0))),
        limits.engine_memory,
        limits.engine_cpu,
        (VCPUS if limits.vcpus is None else min(limits.vcpus, VCPUS)) + OTHER_THREADS,
    )


def _priority(limits: SessionLimits, asked: int | None) -> int:
    if asked is None:
        return limits.priority
    if asked > LEAST_PRIORITY:
        raise invalid("priority", asked, f"within 0 and {LEAST_PRIORITY}")
    if asked < limits.priority:
        raise _denied(f"have the priority {limits.priority} or a higher number, not {asked}")
    return asked


def _cpus(limits: SessionLimits, asked: Collection[int], host: frozenset[int]) -> frozenset[int]:
    if len(asked) > AFFINITY_NUMBERS:
        raise invalid("affinity", f"{len(asked)} numbers", f"{AFFINITY_NUMBERS} numbers at most")
    wanted = frozenset(asked)
    if limits.cpus and (beyond := wanted - limits.cpus):
        raise _denied(f"run on CPUs {listed(limits.cpus)}, not on {shortened(listed(beyond))}")
    usable = (wanted or limits.cpus) & host
    if wanted and not usable:
        raise invalid("affinity", listed(wanted), f"CPUs of core's, at least one: {listed(host)}")
    if limits.cpus and not usable:
        why = f"run on CPUs {listed(limits.cpus)} alone, and core has {listed(host)}"
        raise _denied(why)
    return usable


def _denied(what: str) -> Refusal:
    why = f"policy lets this session {what}"
    return Refusal("DENIED", why, why=why)


def listed(cpus: Iterable[int]) -> str:
    """CPU numbers as the kernel writes them: "0-3,8"."""
    runs: list[tuple[int, int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1] = runs[-1][0], cpu
        else:
            runs.append((cpu, cpu))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
