"""`vmm doctor`."""

from __future__ import annotations

import json as encoder
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from typing import Annotated

from cyclopts import Parameter

from vmm_client.cli.output import Row, show, tell
from vmm_client.connection import connect
from vmm_client.core_socket import socket_path
from vmm_client.doctor.check import Check
from vmm_client.doctor.host import Host, look
from vmm_client.doctor.installation import examine_installation
from vmm_client.doctor.report import EngineReport, conclusions, report_on, seen_by_core
from vmm_client.errors import VmsessionError

COLUMNS = ("where", "what", "works", "detail")


def doctor(
    *,
    installation: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
    socket: str | None = None,
) -> int:
    """See COMMANDS in `vmm_client.cli.main`.

    Parameters
    ----------
    installation
        Look at the installation only, and start no guests: what core is allowed, what it lacks.
    json
        Print one JSON object instead.
    socket
        Core's socket; by default the one of $VMSESSION_SOCKET, yours, or the system's.
    """
    checks = list(examine_installation(socket or socket_path()))
    if installation:
        show(map(_checked, checks), COLUMNS, as_json=json)
        return 1 if any(check.works is False for check in checks) else 0
    host, engines, problem = look(), [], ""
    try:
        with connect(socket) as core:
            engines = list(report_on(core))
    except VmsessionError as error:
        problem = f"{error}; {error.hint}" if error.hint else str(error)
    host = seen_by_core(host, engines)
    verdict = conclusions(host, engines)
    if json:
        told = _object(host, engines, problem, verdict)
        told["installation"] = [asdict(check) for check in checks]
        print(encoder.dumps(told, indent=2))
    else:
        found = chain(map(_checked, checks), _rows(host, engines, problem))
        show(found, COLUMNS, as_json=False)
        tell(verdict)
    return 0 if any(engine.runs_stock_kernels for engine in engines) else 1


def _rows(host: Host, engines: list[EngineReport], problem: str) -> Iterator[Row]:
    about = f"{host.problem}: {host.advice}" if host.problem else host.advice
    yield _row("host", "/dev/kvm", not host.problem, about)
    yield _row("host", "KVM module", bool(host.module), host.module)
    yield _row("core", "connection", not problem, problem)
    for engine in engines:
        yield _row(engine.name, "engine", not engine.problem, engine.problem)
        if engine.abilities.features:
            yield from _abilities(engine)
        for finding in engine.findings:
            yield _row(engine.name, finding.probe, finding.passed, finding.why)
        for mode, speed in engine.speeds.items():
            yield _row(engine.name, f"speed, {mode}", True, f"{speed / 1e6:.1f} MIPS")


def _abilities(engine: EngineReport) -> Iterator[Row]:
    can = engine.abilities
    yield _row(engine.name, "features", True, ", ".join(can.features))
    for what, missing in (
        ("features", can.missing_features),
        ("exits", can.missing_exits),
        ("registers", can.missing_registers),
    ):
        yield _row(engine.name, f"all {what}", not missing, _without(missing))


def _without(missing: list[str]) -> str:
    return f"without {', '.join(missing)}" if missing else ""


def _checked(check: Check) -> Row:
    return {**asdict(check)}


def _row(where: str, what: str, works: bool, detail: str) -> Row:
    return {"where": where, "what": what, "works": works, "detail": detail}


def _object(
    host: Host, engines: list[EngineReport], problem: str, verdict: list[str]
) -> dict[str, object]:
    return {
        "host": asdict(host),
        "core": {"problem": problem},
        "engines": [
            {**asdict(engine), "runs_stock_kernels": engine.runs_stock_kernels}
            for engine in engines
        ],
        "verdict": verdict,
    }
