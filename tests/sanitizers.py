"""The engines compiled with AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from core_service.engine.native import build

REPORTS: Final = (
    "AddressSanitizer",
    "LeakSanitizer",
    "UndefinedBehaviorSanitizer",
    "runtime error:",
)


def options(name: str) -> dict[str, str]:
    """Leaks are looked for where that works: it attaches to its own process, which an engine forbids to
    all but root, and the software CPU's library frees nothing at its end."""
    leaks = int(name == "kvm" and os.geteuid() == 0)
    return {
        "ASAN_OPTIONS": f"detect_leaks={leaks}:exitcode=99",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


class Sanitized:
    """Compiles each engine once into a directory, when it is asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, name: str) -> Path:
        """The executable of the engine `name`. Raises BuildError."""
        engine = next(engine for engine in build.ENGINES if engine.name == name)
        target = self.directory / engine.executable
        return target if target.exists() else build.build(engine, self.directory, sanitize=True)
