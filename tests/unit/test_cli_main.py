"""How `vmm` fails, and how it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from vmm_client.cli.main import COMMANDS, main, status_of
from vmm_client.cli.output import Row, show, size, tell
from vmm_client.cli.schedule import parse_cpus
from vmm_client.cli.sizes import parse_size

ROWS: list[Row] = [
    {"name": "sessions/1", "uid": 0, "label": "", "mapped": ["a", "b"], "more": True},
    {"name": "x\ny\x1b[2J", "uid": 7, "label": None, "mapped": [], "more": False},
]


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = status_of(list(arguments))
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["sessions", "--nonsense"],
        ["run"],
        ["audit", "nonsense"],
        ["audit", "log", "--since", "when pigs fly"],
        ["audit", "log", "--uid", "-1"],
        ["audit", "log", "--after", "-1"],
        ["audit", "watch", "--count", "0"],
        ["dataspaces", "--kind", "swap"],
        ["top", "--interval", "0"],
        ["top", "--interval", "nan"],
    ],
)
def test_wrong_usage_is_one_line_and_a_hint(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    status, out, err = outcome(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("vmm: ")
    assert err.endswith("\n     see `vmm --help`\n")


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"metrics"}))  # goes on without
def test_without_core_every_command_says_what_to_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    flat = tmp_path / "flat"
    flat.write_bytes(b"\xf4")
    socket = str(tmp_path / "core.sock")
    arguments = {
        "run": [str(flat)],
        "diff": [str(flat)],
        "audit history": ["sessions/1"],
    }.get(command, [])
    status, out, err = outcome(capsys, *command.split(), *arguments, "--socket", socket)
    assert status == 1
    text = out if command == "doctor" else err
    assert f"no core at {socket}: no such socket, core is not running" in text
    assert "vmcore serve" in text
    assert "Traceback" not in err


def test_a_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    expected = (1, "", "vmm: /nonexistent: No such file or directory\n")
    assert outcome(capsys, "run", "/nonexistent") == expected


def test_the_version_is_the_distribution_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(capsys, "--version") == (0, f"{version('vmsession')}\n", "")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    pages: dict[tuple[str, ...], tuple[int, str, str]] = {
        above: outcome(capsys, *above, "--help") for above in ((), ("audit",))
    }
    for command in COMMANDS:
        *above, name = command.split()
        status, out, _ = pages[tuple(above)]
        assert (status, name in out) == (0, True), command


@pytest.mark.parametrize("command", ["boot", "run", "doctor"])
def test_help_tells_the_exit_statuses(capsys: pytest.CaptureFixture[str], command: str) -> None:
    status, out, _ = outcome(capsys, command, "--help")
    assert status == 0
    assert "Exit status: 0 when" in out


def test_help_tells_sizes_as_they_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert "[default: 256 MiB]" in outcome(capsys, "boot", "--help")[1]


def test_an_interrupt_from_the_keyboard_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("vmm_client.cli.main.app", interrupted)
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 130


def test_a_reader_that_goes_away_is_no_error() -> None:
    program = "import sys; from vmm_client.cli.main import main; sys.stdin.read(); main()"
    with subprocess.Popen(
        [sys.executable, "-c", program, "doctor", "--socket", "/nonexistent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.close()
        process.stdin.close()
        assert process.wait(30) == 141
        assert process.stderr
        assert process.stderr.read() == b""


def test_a_pipe_gets_columns_and_no_row_can_forge_another(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show(ROWS, ("name", "uid", "label", "mapped", "more"), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "name\tuid\tlabel\tmapped\tmore",
        "sessions/1\t0\t-\ta, b\tyes",
        "x\N{REPLACEMENT CHARACTER}y\N{REPLACEMENT CHARACTER}[2J\t7\t-\t-\tno",
    ]


def test_json_holds_everything_exactly(capsys: pytest.CaptureFixture[str]) -> None:
    show(ROWS, ("name",), as_json=True)
    assert json.loads(capsys.readouterr().out) == ROWS


def test_a_terminal_gets_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    show(ROWS[:1], ("name", "uid"), as_json=False)
    out = capsys.readouterr().out
    assert "sessions/1" in out
    assert "│" in out


def test_a_terminal_gets_whole_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    sentence = "stock kernels boot on soft alone"
    tell([sentence])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    tell([sentence])
    assert capsys.readouterr().out.splitlines() == [
        sentence,
        "stock kernels boot",
        "on soft alone",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4096", 4096), ("64K", 65536), ("16M", 16 << 20), ("2g", 2 << 30), ("1TiB", 1 << 40)],
)
def test_sizes_are_understood(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5M", "16Q", "M", "0x10", "9999999T", "1" * 20])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size: write it as in 64K, 16M or 2G"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("3", [3]), ("0-3,8", [0, 1, 2, 3, 8]), ("8,0-1,1", [0, 1, 8])]
)
def test_cpus_are_understood(text: str, expected: list[int]) -> None:
    assert parse_cpus(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "3-1", "0,", "a", "8192", "0-99999", "1 2"])
def test_what_are_no_cpus_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no list of CPUs: write it as in 0-3,8"):
        parse_cpus(text)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (4097, "4097 B"), (65536, "64 KiB"), (3 << 30, "3 GiB")]
)
def test_sizes_are_told_exactly(count: int, text: str) -> None:
    assert size(count) == text
