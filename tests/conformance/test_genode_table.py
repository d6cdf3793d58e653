"""The table of docs/genode.md: whole, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "docs" / "genode.md").read_text()


def functions() -> set[str]:
    """The names of all tests."""
    trees = (ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py"))
    return {
        node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
    }


def test_every_test_of_the_table_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", TABLE))
    assert named - functions() == set()


def test_every_bug_has_its_test() -> None:
    rows = re.findall(r"^\| (\d+) \| .+ \| (.+) \|$", TABLE, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 21))
    assert [number for number, here in rows if "`test_" not in here] == []


def test_every_open_matter_has_its_test() -> None:
    rows = TABLE.partition("## Still open there")[2].strip().splitlines()[2:]
    assert len(rows) == 8
    assert [row for row in rows if "`test_" not in row] == []
