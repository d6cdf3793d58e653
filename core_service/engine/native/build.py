"""Compile the engine executables: the one list of their sources and flags.

Used by `setup.py` at installation, by the tests for sanitizer variants, and by hand:

    python core_service/engine/native/build.py [--sanitize] [--output DIRECTORY] [ENGINE...]

Needs a C compiler and the kernel's and the C library's headers, nothing else. `CC` and `CFLAGS` are
respected. Imports only the standard library, since `setup.py` loads it before anything is installed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

NATIVE: Final = Path(__file__).resolve().parent
ROOT: Final = NATIVE.parents[2]
IN_TREE: Final = NATIVE / "bin"

INCLUDE: Final = (ROOT / "proto", ROOT / "dataspace" / "native")
FLAGS: Final = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")
SANITIZE: Final = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g")


@dataclass(frozen=True)
class Engine:
    """A backend: its sources are `<name>*.c` and `<name>*.S`, `link` what they need beyond libc."""

    name: str
    link: tuple[str, ...] = ()

    @property
    def executable(self) -> str:
        return f"vmsession-{self.name}"

    def owns(self, source: Path) -> bool:
        return source.name.startswith(self.name)

    def sources(self) -> list[Path]:
        """The common sources and this backend's own."""
        others = [engine for engine in ENGINES if engine is not self]
        found = sorted([*NATIVE.glob("*.c"), *NATIVE.glob("*.S")])
        return [source for source in found if not any(other.owns(source) for other in others)]


# The software CPU's library finds its host by symbol: all of the executable's must be visible to it.
ENGINES: Final = (
    Engine("kvm"),
    Engine("soft", link=("-rdynamic", "-ldl", "-lm")),
    Engine("x86emu", link=("-ldl",)),
)


class BuildError(Exception):
    """The engines cannot be compiled; the text is for the person who asked for it."""


def compiler() -> list[str]:
    """The C compiler's command, from `CC` or gcc.

    Raises:
        BuildError: there is none.
    """
    command = shlex.split(os.environ.get("CC", "")) or ["gcc"]
    if shutil.which(command[0]) is None:
        raise BuildError(
            f"no C compiler: {command[0]!r} is not in PATH; install gcc and libc6-dev, or set CC"
        )
    return command


def build(engine: Engine, output: Path, *, sanitize: bool = False) -> Path:
    """Compile one engine into the directory `output` and return the executable's path.

    Args:
        engine: one of ENGINES.
        output: created where it does not exist.
        sanitize: with AddressSanitizer and UndefinedBehaviorSanitizer, for tests.

    Raises:
        BuildError: no compiler, or it failed; its messages went to standard error.
    """
    output.mkdir(parents=True, exist_ok=True)
    target = output / engine.executable
    # Renamed into place: an engine that runs keeps its file, and nobody starts a half-written one.
    fresh = target.with_suffix(f".{os.getpid()}")
    command = [
        *compiler(),
        *FLAGS,
        *(SANITIZE if sanitize else ()),
        *shlex.split(os.environ.get("CFLAGS", "")),
        *(f"-I{directory}" for directory in INCLUDE),
        *map(str, engine.sources()),
        "-o",
        str(fresh),
        *engine.link,
    ]
    try:
        if subprocess.run(command, check=False).returncode != 0:
            raise BuildError(f"{engine.executable}: {command[0]} failed")
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)
    return target


def main(arguments: list[str] | None = None) -> int:
    """Build the engines named, or all, and print their paths."""
    names = [engine.name for engine in ENGINES]
    parser = argparse.ArgumentParser(description="Compile the engine executables.")
    parser.add_argument("engines", metavar="ENGINE", nargs="*", help=f"of {names}; all by default")
    parser.add_argument("--output", type=Path, default=IN_TREE, help="directory (%(default)s)")
    parser.add_argument("--sanitize", action="store_true", help="with ASan and UBSan")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.engines) - set(names):
        parser.error(f"no engine {unknown}; there are {names}")
    try:
        for engine in ENGINES:
            if engine.name in (chosen.engines or names):
                print(build(engine, chosen.output, sanitize=chosen.sanitize))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
