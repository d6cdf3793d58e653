"""The examination of every engine, and what to conclude."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from vmm_client.connection import Connection
from vmm_client.doctor.abilities import Abilities
from vmm_client.doctor.host import Host
from vmm_client.doctor.probes import ALL, STOCK_KERNEL, Finding, examine
from vmm_client.doctor.speed import GAUGES, instructions_per_second
from vmm_client.errors import VmsessionError

# No hardware is slower, no instruction emulator faster.
EMULATOR_MOST: Final = 20e6
KERNEL_SPEED: Final = "long mode, ring 0"
USER_SPEED: Final = "long mode, ring 3"


@dataclass(frozen=True, slots=True)
class EngineReport:
    """`problem` is empty where the engine works; `speeds` in instructions per second."""

    name: str
    problem: str = ""
    abilities: Abilities = field(default_factory=Abilities)
    findings: list[Finding] = field(default_factory=list)
    speeds: dict[str, float] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """What a stock kernel needs and this engine has not, here."""
        needed = {probe.name for probe in STOCK_KERNEL}
        return [f.probe for f in self.findings if f.probe in needed and not f.passed]

    @property
    def runs_stock_kernels(self) -> bool:
        return not self.problem and not self.missing

    @property
    def emulates_ring_0(self) -> bool:
        """Ring 3 is native, and ring 0 interpreted."""
        kernel, user = self.speeds.get(KERNEL_SPEED), self.speeds.get(USER_SPEED)
        return bool(kernel and user and kernel < EMULATOR_MOST and user > 10 * kernel)


def report_on(connection: Connection) -> Iterator[EngineReport]:
    """Examine every engine that core knows, best first: about half a second each.

    Raises what `Connection.engines` raises; trouble with one engine is told in its report.
    """
    for engine in connection.engines():
        if engine.available:
            yield _examined(connection, engine.name, Abilities.of(engine.capabilities))
        else:
            yield EngineReport(engine.name, engine.unavailable_because)


def _examined(connection: Connection, engine: str, abilities: Abilities) -> EngineReport:
    try:
        findings = list(examine(connection, engine, ALL))
        measured = {g.name: instructions_per_second(connection, engine, g) for g in GAUGES}
    except VmsessionError as error:
        return EngineReport(engine, str(error), abilities)
    speeds = {name: speed for name, speed in measured.items() if speed is not None}
    return EngineReport(engine, "", abilities, findings, speeds)


def seen_by_core(host: Host, engines: list[EngineReport]) -> Host:
    """What matters of the host: where the engine kvm works, core can use KVM, whatever others may."""
    if any(engine.name == "kvm" and not engine.problem for engine in engines):
        return replace(host, problem="", advice="core can use it")
    return host


def conclusions(host: Host, engines: list[EngineReport]) -> list[str]:
    """Sentences for people: one about each engine, or what the host alone tells; then the sum."""
    if not engines:
        return [_without_engines(host)]
    told = [_verdict(host, engine) for engine in engines]
    able = [engine.name for engine in engines if engine.runs_stock_kernels]
    if able:
        told.append(f"`--engine auto` boots stock kernels on {able[0]}.")
    else:
        told.append("Nothing here boots stock kernels: see what each engine lacks.")
    return told


def _without_engines(host: Host) -> str:
    if host.module == "kvm_pvm":
        return (
            "KVM here emulates ring 0 (kvm_pvm) and cannot run stock kernels; the engine soft can."
            " Start core to examine both."
        )
    if host.problem:
        return "The engine soft needs no KVM. Start core to examine it."
    return "Start core to examine the engines."


def _verdict(host: Host, engine: EngineReport) -> str:
    if engine.problem:
        return f"{engine.name} does not work: {engine.problem}."
    if engine.emulates_ring_0:
        by = f" ({host.module})" if host.module == "kvm_pvm" else ""
        speed = engine.speeds[KERNEL_SPEED] / 1e6
        what = f"{engine.name} emulates ring 0 here{by}, at {speed:.1f} MIPS; only ring 3 is native"
    else:
        what = f"{engine.name} works"
    if engine.missing:
        return f"{what}. It cannot run stock kernels: {', '.join(engine.missing)}."
    return f"{what}. It can run stock kernels."
