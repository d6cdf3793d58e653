"""What an engine may say of a vCPU, by what it said of itself. Core passes on to VMMs what stands in an
exit, so one that cannot be ends the engine's session, like any malformed packet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from core_service.engine.protocol import Capability, MalformedPacketError
from dataspace.vcpu_page import (
    DATA_BYTES,
    EXIT_BYTES_SIZE_AT,
    FPU_BIT,
    FPU_BYTES,
    FPU_SIZE_AT,
    EngineHalf,
    ExitFlag,
    Injection,
)

if TYPE_CHECKING:
    from core_service.engine.protocol import Hello

FLAGS: Final = sum(ExitFlag)
INJECTIONS: Final = frozenset(Injection)
ACCESS_SIZES: Final = frozenset((0, 1, 2, 4, 8))
INSTRUCTION_BYTES: Final = 16


def check_exit(hello: Hello, half: EngineHalf) -> None:
    """An exit that this engine can have. Raises MalformedPacketError."""
    if not half.reason or not hello.exit_reasons >> half.reason & 1:
        raise MalformedPacketError(f"an exit with reason {half.reason}, which it did not claim")
    if half.injection not in INJECTIONS:
        raise MalformedPacketError(f"an exit with injection result {half.injection}")
    if unknown := half.flags & ~FLAGS:
        raise MalformedPacketError(f"an exit with unknown flags {unknown:#x}")
    if half.size not in ACCESS_SIZES or half.size * half.count > DATA_BYTES:
        raise MalformedPacketError(f"an exit with {half.count} accesses of {half.size} bytes")
    if (length := half.u32[EXIT_BYTES_SIZE_AT // 4]) > INSTRUCTION_BYTES:
        raise MalformedPacketError(f"an exit with {length} bytes of an instruction")
    check_registers(hello, half)


def check_registers(hello: Hello, half: EngineHalf) -> None:
    """Registers that this engine has. Raises MalformedPacketError."""
    for valid, claimed in zip(half.masks, hello.registers, strict=True):
        if unclaimed := valid & ~claimed:
            raise MalformedPacketError(f"registers {unclaimed:#x}, which it did not claim")
    size = half.u32[FPU_SIZE_AT // 4]
    if size > FPU_BYTES or (size and Capability.FPU not in hello.capabilities):
        raise MalformedPacketError(f"an FPU area of {size} bytes")
    if half.masks[1] >> FPU_BIT & 1 and not size:
        raise MalformedPacketError("FPU state, which it did not claim")
