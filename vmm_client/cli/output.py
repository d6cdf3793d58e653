"""Tables for people, for pipes and for programs."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

Cell = str | int | float | bool | None
Value = Cell | list[str] | list[int] | dict[str, Cell]
Row = dict[str, Value]


def show(rows: Iterable[Row], columns: Sequence[str], *, as_json: bool, title: str = "") -> None:
    """Print rows: a JSON list with all that they hold, else the named columns, as a table in a
    terminal, and otherwise one line a row, separated by tabs, below a line of names."""
    if as_json:
        _show_json(rows)
    elif sys.stdout.isatty():
        _show_table(rows, columns, title)
    else:
        _show_lines(rows, columns, aligned=False)


def show_as_it_comes(
    rows: Iterable[Row], columns: Sequence[str], *, as_json: bool, lines: bool = False
) -> None:
    """As `show`, but each row at once, and in a terminal without a frame. With `lines`, JSON is an
    object a line."""
    if as_json and lines:
        for row in rows:
            print(json.dumps(row), flush=True)
    elif as_json:
        _show_json(rows)
    else:
        _show_lines(rows, columns, aligned=sys.stdout.isatty())


def _show_json(rows: Iterable[Row]) -> None:
    before = "["
    for row in rows:
        print(before)
        print(textwrap.indent(json.dumps(row, indent=2), "  "), end="")
        before = ","
    print("[]" if before == "[" else "\n]")


def _show_lines(rows: Iterable[Row], columns: Sequence[str], *, aligned: bool) -> None:
    """A line of names, and one for each row; columns that are aligned grow as they need."""
    widths = [0] * len(columns)
    for cells in chain([columns], ([_text(row[column]) for column in columns] for row in rows)):
        if aligned:
            widths = [max(width, len(cell)) for width, cell in zip(widths, cells, strict=True)]
            padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            print("  ".join(padded).rstrip(), flush=True)
        else:
            print("\t".join(cells), flush=True)


def tell(sentences: Iterable[str]) -> None:
    """Print sentences, one a line; a terminal gets them wrapped between words."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    for sentence in sentences:
        print(textwrap.fill(sentence, width, break_long_words=False, break_on_hyphens=False))


def table(rows: Iterable[Row], columns: Sequence[str], title: str = "") -> Table:
    """The named columns, for a terminal."""
    from rich.table import Table  # noqa: PLC0415 - only a terminal pays for it
    from rich.text import Text  # noqa: PLC0415

    made = Table(*columns, title=title or None, title_justify="left")
    for row in rows:
        made.add_row(*(Text(_text(row[column])) for column in columns))
    return made


def _show_table(rows: Iterable[Row], columns: Sequence[str], title: str) -> None:
    from rich.console import Console  # noqa: PLC0415

    Console().print(table(rows, columns, title))


def _text(value: Value) -> str:
    """A cell on one line: what comes from others must not move the cursor or start a line."""
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    elif isinstance(value, bool):
        value = "yes" if value else "no"
    text = "-" if value in (None, "") else str(value)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def size(count: int) -> str:
    """Bytes for people, as in `64 MiB`; exact ones where there is no whole unit."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << shift and count % (1 << shift) == 0:
            return f"{count >> shift} {unit}"
    return f"{count} B"
