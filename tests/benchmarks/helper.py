"""The C helpers: compiled when the benchmarks run, and processes of them that answer lines."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from core_service.engine.native.build import FLAGS, INCLUDE, compiler

NATIVE: Final = Path(__file__).parent / "native"
ROOT: Final = Path(__file__).parents[2]


class HelperError(Exception):
    """A helper ended; what it said of that is on standard error."""


def compile_helper(source: str, directory: Path, *options: str) -> Path:
    """Compile a file of `native` into `directory`. Raises BuildError, CalledProcessError."""
    target = directory / Path(source).stem
    includes = [f"-I{path}" for path in INCLUDE]
    command = [*compiler(), *FLAGS, *options, *includes, str(NATIVE / source), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


class Helper:
    """Owns a process that answers each line of its input with one line; a context manager, which
    ends it."""

    def __init__(self, command: Sequence[str | Path], pass_fds: Sequence[int] = ()) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=pass_fds,
            cwd=ROOT,
            text=True,
        )

    def ask(self, question: str) -> str:
        """Tell and wait. Raises HelperError."""
        self.tell(question)
        return self.answer()

    def tell(self, line: str) -> None:
        """Send a line. Raises HelperError."""
        assert self._process.stdin
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def answer(self) -> str:
        """Wait for a line. Raises HelperError."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        return line

    def check_alive(self) -> None:
        """Raises HelperError if it ended."""
        if self._process.poll() is not None:
            raise self._ended()

    def _ended(self) -> HelperError:
        return HelperError(f"{self._process.args!r} ended with status {self._process.wait()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
