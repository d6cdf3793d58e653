"""What `make install-files` installs, in a directory of its own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"


def make(target: str, stage: Path, *variables: str) -> str:
    """Run a target with DESTDIR; what it printed."""
    return subprocess.run(
        ["make", "--silent", target, f"DESTDIR={stage}", *variables],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    ).stdout


def files_below(directory: Path) -> set[str]:
    """All files, by their paths in it."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def with_host_units(stage: Path) -> None:
    """Make a stage look like a system to systemd-analyze: targets to depend on, programs to start."""
    units = next(
        path for path in map(Path, ("/usr/lib", "/lib")) if (path / "systemd/system").is_dir()
    )
    shutil.copytree(
        units / "systemd/system",
        stage / "usr/lib/systemd/system",
        symlinks=True,
        dirs_exist_ok=True,
    )
    for program in ("usr/local/bin/vmcore", "usr/local/bin/vmm", "usr/bin/kill", "bin/kill"):
        path = stage / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
