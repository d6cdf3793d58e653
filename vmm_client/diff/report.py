"""An outcome for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vmm_client.diff.disassembly import disassemble
from vmm_client.diff.lockstep import Outcome


def lines(outcome: Outcome, unit: str) -> Iterator[str]:
    """What to print; `unit` is what was counted, instruction or exit."""
    first, second = outcome.engines
    units = unit if outcome.compared == 1 else f"{unit}s"
    if not outcome.differences:
        ending = f"until {outcome.ending.name}" if outcome.ending else "and the guest goes on"
        yield f"{first} and {second} agree over {outcome.compared} {units}, {ending}"
        return
    yield f"{first} and {second} differ after {outcome.compared} {units}"
    for line in map(disassemble, outcome.history):
        yield f"  {line.rip:#10x}  {line.code.hex(' '):30}  {line.text}".rstrip()
    yield ""
    rows = [("", first, second), *outcome.differences]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"  {'  '.join(cells)}".rstrip()


def record(outcome: Outcome, unit: str) -> dict[str, Any]:
    """The same for programs."""
    first, second = outcome.engines
    return {
        "engines": [first, second],
        "unit": unit,
        "compared": outcome.compared,
        "ending": outcome.ending.name if outcome.ending else None,
        "differences": [{"what": what, "values": values} for what, *values in outcome.differences],
        "history": [
            {"rip": line.rip, "code": line.code.hex(), "text": line.text}
            for line in map(disassemble, outcome.history)
        ],
    }
