"""`vmm diff` against a real core."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import expected
from tests.guests.assemble import assemble
from tests.integration.running_core import RunningCore, Stubs
from vmm_client.cli.main import status_of


class Diff:
    """`vmm diff` on a core, in this process; needs both engines."""

    def __init__(self, core: RunningCore, capfd: pytest.CaptureFixture[str], directory: Path):
        self._core = core
        self._capfd = capfd
        self._flat = directory / "guest.bin"

    def __call__(self, source: str, *arguments: str) -> tuple[int, str, str]:
        self._flat.write_bytes(assemble(source.replace("; ", "\n"), 32, 0x100000))
        socket = str(self._core.socket)
        options = ["--mode", "protected", *arguments, "--socket", socket]
        status = status_of(["diff", str(self._flat), *options])
        printed = self._capfd.readouterr()
        return status, printed.out, printed.err


@pytest.fixture
def diff(
    core: RunningCore, stubs: Stubs, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Diff:
    """`stubs` proves afterwards that nothing is left."""
    if not {"soft", "kvm"} <= set(expected()):
        pytest.skip("needs the engines soft and kvm")
    return Diff(core, capfd, tmp_path)


def test_engines_that_agree(diff: Diff) -> None:
    answer = diff("mov eax, 5; in al, 0x60; hlt")
    assert answer == (0, "soft and kvm agree over 3 instructions, until HLT\n", "")


def test_engines_that_differ(diff: Diff) -> None:
    """Between exits nobody knows that RAX came from a clock."""
    status, out, err = diff("xor edx, edx; rdtsc; out 0x80, al; hlt", "--exits", "--json")
    assert (status, err) == (3, "")
    told = json.loads(out)
    assert (told["engines"], told["unit"], told["compared"]) == (["soft", "kvm"], "exit", 1)
    assert "rax" in [each["what"] for each in told["differences"]]
    assert told["history"][0]["rip"] == 0x100000


def test_a_clock_is_no_difference_between_steps(diff: Diff) -> None:
    status, out, _ = diff("rdtsc; mov ecx, eax; hlt", "--engines", "kvm,soft")
    assert (status, out) == (0, "kvm and soft agree over 3 instructions, until HLT\n")


def test_the_limit_is_no_end(diff: Diff) -> None:
    status, out, _ = diff("1: jmp 1b", "--limit", "4")
    assert (status, out) == (0, "soft and kvm agree over 4 instructions, and the guest goes on\n")


@pytest.mark.parametrize("option", ["--limit=0", "--seed=-1", f"--seed={1 << 63}"])
def test_numbers_have_limits(diff: Diff, option: str) -> None:
    status, out, err = diff("hlt", option)
    assert (status, out) == (2, "")
    assert option.partition("=")[0] in err


@pytest.mark.parametrize("engines", ["soft", "soft,", "soft,kvm,soft"])
def test_two_engines_are_named(diff: Diff, engines: str) -> None:
    status, out, err = diff("hlt", "--engines", engines)
    assert (status, out) == (1, "")
    assert err.startswith(f"vmm: --engines {engines}: two names are compared\n")
