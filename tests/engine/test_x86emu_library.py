"""What the engine x86emu says of files that are not its library."""

from __future__ import annotations

import ctypes.util
import subprocess
from pathlib import Path

import pytest

from core_service.engine.native import build
from tests.engine.harness import Engine, EngineGoneError

VARIABLE = "VMSESSION_X86EMU"
FUNCTIONS = ("new", "done", "run", *(f"set_{name}_handler" for name in ("code", "memio", "intr")))
HANDLERS = tuple(f"set_{name}_handler" for name in ("cpuid", "rdmsr", "wrmsr"))


def refusal(variables: dict[str, str]) -> str:
    """What the engine says before it ends."""
    with Engine(build.IN_TREE / "vmsession-x86emu", variables) as engine:
        with pytest.raises(EngineGoneError) as error:
            engine.hello()
        assert engine.wait() == 1
    return str(error.value)


@pytest.mark.parametrize("variables", [{}, {VARIABLE: ""}])
def test_no_path(variables: dict[str, str]) -> None:
    assert refusal(variables) == f"{VARIABLE} is not set; install libx86emu3"


def test_no_file() -> None:
    told = refusal({VARIABLE: "/nowhere.so"})
    assert told.startswith("install libx86emu3: /nowhere.so: cannot open shared object file")


def test_another_library() -> None:
    other = ctypes.util.find_library("c")
    assert other
    assert refusal({VARIABLE: other}) == f"no x86emu_new; install libx86emu3: {other}"


def test_another_layout(tmp_path: Path) -> None:
    """A library of the same functions, whose CPU is another."""
    source, library = tmp_path / "other.c", tmp_path / "other.so"
    stubs = "".join(f"void *x86emu_{name}(void) {{ return 0; }}\n" for name in FUNCTIONS[1:])
    stubs += "".join(f"void *x86emu_{name}(void) {{ return 0; }}\n" for name in HANDLERS)
    source.write_text(
        f"#include <stdlib.h>\nvoid *x86emu_new(void) {{ return calloc(1, 4096); }}\n{stubs}"
    )
    subprocess.run([*build.compiler(), "-shared", "-fPIC", "-o", library, source], check=True)
    told = refusal({VARIABLE: str(library)})
    assert told == f"not laid out as libx86emu 3.5; install libx86emu3: {library}"
