"""What the soak measured: progress while it runs, at the end one table and one JSON file."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

PROGRESS_SECONDS: Final = 10.0
FILE: Final = Path("soak.json")


class Row(NamedTuple):
    """One campaign."""

    campaign: str
    engine: str
    transport: str
    number: int
    unit: str
    seconds: float
    seed: int | None
    figures: dict[str, int]


class SoakReport:
    """Collects rows; says by `write` what goes on."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.rows: list[Row] = []
        self._write = write
        self._told = time.monotonic()

    def progress(self, campaign: str, done: int, of: int, unit: str) -> None:
        """Say how far a campaign is, at most every ten seconds."""
        now = time.monotonic()
        if now - self._told >= PROGRESS_SECONDS:
            self._told = now
            self._write(f"  {campaign}: {done:,} of {of:,} {unit}")

    def add(self, row: Row) -> None:
        """A campaign is over."""
        self.rows.append(row)
        self._write(f"  {row.campaign} {row.engine} {row.transport}: {row.number:,} {row.unit}")

    def table(self) -> str:
        """For a note: aligned columns."""
        head = ("campaign", "engine", "transport", "number", "of", "seconds", "per second", "seed")
        cells = [head, *(self._cells(row) for row in self.rows)]
        widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
        lines = (
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            for line in cells
        )
        return "\n".join(line.rstrip() for line in lines)

    def finish(self) -> None:
        """Print the table, and write the JSON file."""
        self._write("")
        for line in self.table().splitlines():
            self._write(line)
        told = {
            "machine": {"cores": os.cpu_count(), "kernel": platform.release()},
            "campaigns": [row._asdict() for row in self.rows],
        }
        FILE.write_text(json.dumps(told, indent=2) + "\n")
        self._write(f"written to {FILE}")

    def _cells(self, row: Row) -> tuple[str, ...]:
        rate = row.number / row.seconds if row.seconds else 0.0
        return (
            row.campaign,
            row.engine,
            row.transport,
            f"{row.number:,}",
            row.unit,
            f"{row.seconds:.0f}",
            f"{rate:,.0f}",
            "" if row.seed is None else str(row.seed),
        )
