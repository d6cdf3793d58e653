"""The library of the engine x86emu: the machine's own, or a copy beside the engines.

    python -m tests.libx86emu

puts the copy there where the machine has none: from Debian's package, by the machine's own apt, without
root. Where that cannot be, it says so in one line: then that engine does not start, and its tests skip.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
from pathlib import Path
from typing import Final

from core_service.engine.catalog import EXECUTABLES
from vmm_client.boot.apt import Apt, AptError

PACKAGE: Final = "libx86emu3"
SONAME: Final = "libx86emu.so.3"


def present() -> bool:
    """Whether the engine finds its library."""
    if (EXECUTABLES / SONAME).exists():
        return True
    try:
        ctypes.CDLL(SONAME)
    except OSError:
        return False
    return True


def fetch(target: Path) -> None:
    """Put the package's library at `target`.

    Raises AptError, OSError.
    """
    with tempfile.TemporaryDirectory() as directory:
        apt = Apt(Path(directory))
        apt.update()
        fresh = target.with_suffix(".fresh")
        apt.extract(apt.download(PACKAGE), lambda path: SONAME in path, fresh)
        fresh.replace(target)


def main() -> None:
    """Fetch it where there is none."""
    if present():
        return
    try:
        fetch(EXECUTABLES / SONAME)
    except (AptError, OSError) as error:
        print(f"the engine x86emu is left out, install {PACKAGE}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
