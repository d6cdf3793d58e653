"""The README says what is so."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_example_is_the_one_that_the_demo_runs() -> None:
    assert blocks("python") == [(ROOT / "examples" / "tiny_vmm.py").read_text()]


def test_the_example_has_forty_lines_of_code() -> None:
    (example,) = blocks("python")
    assert sum(1 for line in example.splitlines() if line.strip()) <= 42


def test_ci_runs_the_two_commands_word_for_word() -> None:
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    two = [block.strip() for block in blocks("sh")[:2]]
    assert two == ["make demo", "make test"]
    assert set(two) <= set(ci)


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
