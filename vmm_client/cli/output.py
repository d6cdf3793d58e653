"""Tables for people, for pipes and for programs."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

Cell = str | int | float | bool | None
Row = dict[str, Cell | list[str]]


def show(rows: Iterable[Row], columns: Sequence[str], *, as_json: bool, title: str = "") -> None:
    """Print rows: a JSON list with all that they hold, else the named columns, as a table in a
    terminal, and otherwise one line a row, separated by tabs, below a line of names."""
    if as_json:
        print(json.dumps(list(rows), indent=2))
    elif sys.stdout.isatty():
        _show_table(rows, columns, title)
    else:
        print("\t".join(columns))
        for row in rows:
            print("\t".join(_text(row[column]) for column in columns))


def tell(sentences: Iterable[str]) -> None:
    """Print sentences, one a line; a terminal gets them wrapped between words."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    for sentence in sentences:
        print(textwrap.fill(sentence, width, break_long_words=False, break_on_hyphens=False))


def _show_table(rows: Iterable[Row], columns: Sequence[str], title: str) -> None:
    from rich.console import Console  # noqa: PLC0415 - only a terminal pays for it
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(*columns, title=title or None, title_justify="left")
    for row in rows:
        table.add_row(*(Text(_text(row[column])) for column in columns))
    Console().print(table)


def _text(value: Cell | list[str]) -> str:
    """A cell on one line: what comes from others must not move the cursor or start a line."""
    if isinstance(value, list):
        value = ", ".join(value)
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
