"""Every command of the README's "By hand", as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.running_core import RunningCore

ROOT = Path(__file__).parents[2]
BY_HAND = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[2]
COMMANDS = [line.split("#")[0].strip() for line in BY_HAND.splitlines()]
INTERACTIVE = (".venv/bin/vmcore serve &", ".venv/bin/vmm boot")  # see running_core, test_boot


def test_all_commands_are_here() -> None:
    assert len(COMMANDS) == 8
    assert set(INTERACTIVE) <= set(COMMANDS)


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - set(INTERACTIVE)))
def test_a_command_works(core: RunningCore, tmp_path: Path, command: str) -> None:
    (tmp_path / "guest.bin").write_bytes(bytes.fromhex("faf4"))  # cli; hlt
    program, *arguments = shlex.split(command)
    completed = subprocess.run(
        [Path(sys.executable).parent / Path(program).name, *arguments],
        cwd=tmp_path,
        env=os.environ | {"VMSESSION_SOCKET": str(core.socket)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (completed.returncode, completed.stderr) == (0, "")
