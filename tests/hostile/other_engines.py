"""`vmcore` whose engines lie in another directory:

python -m tests.hostile.other_engines DIRECTORY serve ...
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from core_service.engine import catalog
from core_service.main import main
from tests import libx86emu, sanitizers
from tests.integration.running_core import RunningCore
from tests.sanitizers import Sanitized


def core_with(directory: Path, *options: str) -> RunningCore:
    """Its engines are the executables in `directory`."""
    command = (sys.executable, "-m", "tests.hostile.other_engines", str(directory))
    return RunningCore("--log-level", "warning", *options, command=command)


def install(directory: Path, engine: str, *command: str | Path, **environment: str) -> None:
    """An engine in `directory` that is another command."""
    variables = "".join(
        f"export {name}={shlex.quote(told)}\n" for name, told in environment.items()
    )
    path = directory / f"vmsession-{engine}"
    path.write_text(f"#!/bin/sh\n{variables}exec {shlex.join(map(str, command))}\n")
    path.chmod(0o755)


def install_own(directory: Path, engine: str) -> None:
    """The engine that this machine has."""
    install(directory, engine, catalog.EXECUTABLES / f"vmsession-{engine}")
    _install_library(directory)


def install_sanitized(directory: Path, engine: str, sanitized: Sanitized) -> None:
    """The engine compiled with sanitizers, which report into core's log."""
    options: Mapping[str, str] = sanitizers.options(engine)
    install(directory, engine, sanitized(engine), **options)
    _install_library(directory)


def _install_library(directory: Path) -> None:
    """The engine x86emu looks for its library beside the engines."""
    ours, theirs = catalog.EXECUTABLES / libx86emu.SONAME, directory / libx86emu.SONAME
    if ours.exists() and not theirs.exists():
        theirs.symlink_to(ours)


if __name__ == "__main__":
    catalog.EXECUTABLES = Path(sys.argv.pop(1))  # type: ignore[misc] # elsewhere only here
    main()
