"""Instructions in words, where Capstone is installed (`pip install vmsession[diff]`)."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from vmm_client.diff.code import Instruction


class Line(NamedTuple):
    """`text` is empty, and `code` all the bytes that are known, where nobody disassembles."""

    rip: int
    code: bytes
    text: str


def disassemble(instruction: Instruction) -> Line:
    """The one instruction with which the bytes begin."""
    decoder = _decoder(instruction.bits)
    if decoder:
        for _rip, length, name, operands in decoder.disasm_lite(
            instruction.code, instruction.rip, 1
        ):
            text = f"{name} {operands}".rstrip()
            return Line(instruction.rip, instruction.code[:length], text)
    return Line(instruction.rip, instruction.code, "")


@functools.cache
def _decoder(bits: int) -> Any:
    try:
        import capstone  # noqa: PLC0415 - an optional dependency
    except ImportError:
        return None
    modes = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
    return capstone.Cs(capstone.CS_ARCH_X86, modes[bits])
