"""The manual pages are what the commands say, and roff that is well formed."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

import pytest

from core_service.main import parser
from docs.man.generate import DIRECTORY, pages
from docs.man.roff import Page
from vmm_client.cli.main import COMMANDS

PAGES = {page.file: str(page) for page in pages()}
GROFF = shutil.which("groff")


def committed() -> dict[str, str]:
    return {path.name: path.read_text() for path in DIRECTORY.glob("*.[1-9]")}


@pytest.mark.parametrize("variable", ["XDG_RUNTIME_DIR", "XDG_STATE_HOME", "HOME"])
def test_the_pages_are_fresh_whoever_asks(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "/elsewhere")
    assert {page.file: str(page) for page in pages()} == committed(), "run `make man`"


def test_there_is_a_page_for_each_command() -> None:
    expected = {"vmm.1", "vmcore.8", *(f"vmm-{name.replace(' ', '-')}.1" for name in COMMANDS)}
    assert PAGES.keys() == expected


def test_every_option_of_vmcore_is_told() -> None:
    (choices,) = (
        action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    text = PAGES["vmcore.8"].replace("\\-", "-")
    for name, command in choices.choices.items():
        assert f'.SS "vmcore {name}"' in text
        for action in command._actions:
            assert action.dest == "help" or action.help, action
            for option in set(action.option_strings) - {"-h", "--help"}:
                assert f"\\fB{option}\\fR" in text


@pytest.mark.skipif(GROFF is None, reason="there is no groff")
@pytest.mark.parametrize("file", sorted(PAGES))
def test_groff_has_nothing_to_say(file: str) -> None:
    assert GROFF
    done = subprocess.run(
        [GROFF, "-man", "-ww", "-Tutf8", "-z", DIRECTORY / file],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(GROFF is None, reason="there is no groff")
def test_text_comes_out_as_it_went_in(tmp_path: Path) -> None:
    strange = ".so /etc/passwd \\n(.z 'quoted' `code -x` a--b ~user ^C"
    page = Page("x", 1, "1", "what")
    page.heading("description")
    page.text(strange)
    page.item("--option", "VALUE", ".start 'it")
    path = tmp_path / "x.1"
    path.write_text(str(page))
    assert GROFF
    shown = subprocess.run(
        [GROFF, "-man", "-ww", "-Tascii", "-P-c", "-P-b", "-P-u", path],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    words = " ".join(shown.stdout.split())
    assert strange.replace("`", "") in words
    assert "--option VALUE .start 'it" in words
    assert shown.stderr == ""
