"""docs/engines.md: what each engine claims to do, as core tells it. `make table` runs this file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from vmsession.v1.core_pb2 import Engine

from dataspace.registers import SCALARS, SEGMENTS
from dataspace.vcpu_page import Reason
from tests.conformance.claims import claims_of
from tests.integration.running_core import RunningCore
from vmm_client import connect

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "engines.md"
YES, BY_HOST, UNPROVED, NO = "●", "○", "◌", "·"
# What KVM has where the host's CPU has it, or VMX or SVM.
DEPENDS: Final = {
    "kvm": frozenset(
        ["exit:TPR", "feature:watch", "register:tsc_offset", "register:tsc_aux", "register:xss"]
        + [f"register:pdpte{number}" for number in range(4)]
    )
}
# What may come, though no guest is known that makes it come.
NEVER_SEEN: Final = {"soft": frozenset(["exit:INTERNAL_ERROR"])}
HEAD: Final = """\
# Engines

What each engine claims: in its hello to core, in `ListEngines` and in `session.capabilities`. Every ● is
proved by the conformance suite (`tests/conformance`); what an engine does not claim it refuses or does
not deliver, and a VMM can ask before it relies on it. ○ depends on the host: on its CPU, or on VMX or
SVM. ◌ may come, though no guest is known that makes it come. Written by `make table`; do not edit.
"""
FEATURES: Final = {
    "fpu": "FPU, SSE and AVX state can be read and written",
    "smp": "several vCPUs",
    "parallel": "they run on several cores at once",
    "paging": "the guest can switch paging on",
    "long_mode": "the guest can enter long mode",
    "cpuid": "the VMM sets what CPUID answers",
    "msr_filter": "the VMM names MSRs whose accesses exit",
    "debug": "single step, breakpoints on execution",
    "watch": "breakpoints on data",
}
EVENTS: Final = {
    "interrupts": "external interrupts",
    "nmi": "NMIs",
    "exceptions": "exceptions",
}


Claims = dict[str, frozenset[str]]


def cell(engine: str, claim: str, made: Claims) -> str:
    """How one claim stands with one engine."""
    if claim in DEPENDS.get(engine, ()):
        return BY_HOST
    if claim in NEVER_SEEN.get(engine, ()):
        return UNPROVED
    return YES if claim in made[engine] else NO


def table(title: str, engines: list[str], rows: Iterable[tuple[str, str]], made: Claims) -> str:
    """One section: rows of (what the reader sees, claim)."""
    lines = [
        f"\n## {title}\n",
        f"| | {' | '.join(engines)} |",
        f"|---|{'---|' * len(engines)}",
        *(
            f"| {name} | {' | '.join(cell(engine, claim, made) for engine in engines)} |"
            for name, claim in rows
        ),
    ]
    return "\n".join(lines) + "\n"


def document(engines: Iterable[Engine]) -> str:
    """The whole text, for the engines that run here."""
    there = [engine for engine in engines if engine.available]
    names = [engine.name for engine in there]
    made = {engine.name: claims_of(engine.capabilities) for engine in there}
    registers = [(f"`{name}`", f"register:{name}") for name in (*SCALARS, *SEGMENTS)]
    exits = [(name, f"exit:{name}") for name in Reason.__members__ if name != "NONE"]
    sections = (
        ("Features", [(f"`{name}`: {what}", f"feature:{name}") for name, what in FEATURES.items()]),
        ("Events", [(f"`{name}`: {what}", f"feature:{name}") for name, what in EVENTS.items()]),
        ("Exits", exits),
        ("Registers", registers),
    )
    return HEAD + "".join(table(title, names, rows, made) for title, rows in sections)


def claims_in(text: str) -> Claims:
    """What a document says that engines claim on every host."""
    made: dict[str, set[str]] = {}
    kind, names = "", list[str]()
    for line in text.splitlines():
        if line.startswith("## "):
            kind = {"Exits": "exit", "Registers": "register"}.get(line[3:], "feature")
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| |"):
            names = cells[1:]
        elif line.startswith("| "):
            row = cells[0].split(":")[0].strip("`")
            for name, cell in zip(names, cells[1:], strict=True):
                made.setdefault(name, set()).update(
                    [f"{kind}:{row}"] if cell in {YES, UNPROVED} else []
                )
    return {name: frozenset(claims) for name, claims in made.items()}


def main() -> None:
    """Write it from a core of its own."""
    core = RunningCore()
    try:
        with connect(str(core.socket)) as client:
            DOCUMENT.write_text(document(client.engines()))
        core.stop()
    finally:
        core.close()


if __name__ == "__main__":
    main()
