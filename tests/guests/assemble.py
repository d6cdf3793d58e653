"""Guest programs from GNU as source, in Intel syntax, with the compiler that built the engines."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path


@functools.cache
def assemble(source: str, bits: int = 32, origin: int = 0) -> bytes:
    """The machine code of `source` for a CPU in 16, 32 or 64-bit mode, to be loaded at `origin`.

    Raises CalledProcessError; the assembler's messages go to standard error.
    """
    with tempfile.TemporaryDirectory() as directory:
        text, linked, flat = (Path(directory) / name for name in ("guest.S", "guest.elf", "guest"))
        text.write_text(f".intel_syntax noprefix\n.code{bits}\n.globl _start\n_start:\n{source}\n")
        link = ["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", f"-Wl,-Ttext={origin:#x}"]
        subprocess.run(["gcc", *link, "-o", linked, text], check=True)
        subprocess.run(["objcopy", "-O", "binary", "-j", ".text", linked, flat], check=True)
        return flat.read_bytes()
