"""The results for people, and for later runs to compare with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Final, TextIO

from rich.console import Console
from rich.table import Table

from tests.benchmarks.result import Result
from tests.benchmarks.target import TARGETS

COLUMNS: Final = ("name", "value", "unit", "ratio", "against", "target", "")
NUMBERS: Final = ("value", "ratio")
DECIMALS: Final = 4


def write_json(results: Iterable[Result], path: Path) -> None:
    """A list of objects with name, value, unit, against (or null) and ratio (or null)."""
    records = [_rounded(asdict(result)) for result in results]
    path.write_text(json.dumps(records, indent=2) + "\n")


def print_table(results: Iterable[Result], out: TextIO) -> None:
    """Aligned in a terminal; elsewhere tabs between the columns, and nothing else."""
    rows = [row(result) for result in results]
    if not out.isatty():
        for cells in (COLUMNS, *rows):
            print("\t".join(cells), file=out)
        return
    table = Table(box=None)
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in NUMBERS else "left", no_wrap=True)
    for cells in rows:
        table.add_row(*cells)
    Console(file=out).print(table)


def row(result: Result) -> tuple[str, ...]:
    """The cells of a result, in the order of COLUMNS."""
    target = TARGETS.get(result.name)
    return (
        result.name,
        number(result.value),
        result.unit,
        "" if result.ratio is None else f"{result.ratio:.2f}x",
        result.against or "",
        target.text(result.unit) if target else "",
        "" if target is None else "met" if target.met(result) else "missed",
    )


def number(value: float) -> str:
    """Three digits and more, no exponent."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{decimals}f}"


def _rounded(record: dict[str, object]) -> dict[str, object]:
    return {
        key: round(value, DECIMALS) if isinstance(value, float) else value
        for key, value in record.items()
    }
