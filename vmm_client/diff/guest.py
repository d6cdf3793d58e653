"""A flat guest, entered alike on every engine."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from typing import Final

from dataspace.registers import Segment
from vmm_client.boot.flat import Mode, load
from vmm_client.boot.modes import (
    CODE_32,
    CODE_64,
    GDT,
    PAGE_TABLES,
    PAGE_TABLES_END,
    RFLAGS_RESERVED,
    Registers,
    descriptor,
)
from vmm_client.memory import GuestMemory

IDT: Final = 0x7000
STUBS: Final = 0x7200
STUB: Final = b"\x90\xf4"  # of each vector: NOP, HLT
VECTORS: Final = 32
TSS: Final = 0x7400
KERNEL_STACK: Final = 0x9000  # grows down
USER_CODE: Final = Segment(0x2B, 0xAFB, 0xFFFF_FFFF, 0)
USER_DATA: Final = Segment(0x33, 0xCF3, 0xFFFF_FFFF, 0)
TASK: Final = Segment(0x38, 0x08B, 0x67, TSS)
ACCESSED_DIRTY: Final = 0x60
USER: Final = 0x4
CR4_SSE: Final = 0x600  # OSFXSR, OSXMMEXCPT
# IF: where KVM has no hardware for virtual machines, ring 3 sees it set whatever it is.
INTERRUPTS: Final = 0x200


def handler(vector: int) -> int:
    """Where the handler of a vector begins."""
    return STUBS + len(STUB) * vector


class DiffMode(Enum):
    """How the guest is entered: as `vmm run` does, or in ring 3 of long mode."""

    REAL = "real"
    PROTECTED = "protected"
    LONG = "long"
    USER = "user"

    @property
    def ring_0(self) -> Mode:
        """The mode of `vmm run` it is made of."""
        return Mode.LONG if self is DiffMode.USER else Mode(self.value)


@dataclass(frozen=True)
class Guest:
    """The image, and how it is entered. Each of the first 32 vectors leads to a HLT of its own, so
    that a fault ends the guest where it can be told which it was."""

    image: bytes
    mode: DiffMode = DiffMode.REAL
    load_address: int | None = None

    def load(self, memory: GuestMemory) -> Registers:
        """Write all of it; what to enter it with. Raises ImageError."""
        memory.write(0, bytes(memory.size))
        # Before the image, which may lie over them in real mode.
        memory.write(STUBS, STUB * VECTORS)
        if self.mode is DiffMode.REAL:
            memory.write(0, struct.pack(f"<{2 * VECTORS}H", *_real_vectors()))
        registers = dict(load(memory, self.image, self.mode.ring_0, self.load_address).registers)
        if self.mode is not DiffMode.REAL:
            registers["idtr"] = self._write_idt(memory)
        if self.mode in (DiffMode.LONG, DiffMode.USER):
            _touch_page_tables(memory, user=self.mode is DiffMode.USER)
        if self.mode is DiffMode.USER:
            registers |= _user(memory)
        return registers

    def _write_idt(self, memory: GuestMemory) -> Segment:
        """Interrupt gates (SDM volume 3, 6.11 and 6.14.1)."""
        code = CODE_32 if self.mode is DiffMode.PROTECTED else CODE_64
        gates = (handler(vector) | code.selector << 16 | 0x8E00 << 32 for vector in range(VECTORS))
        if self.mode is DiffMode.PROTECTED:
            table = struct.pack(f"<{VECTORS}Q", *gates)
        else:
            table = b"".join(struct.pack("<QQ", gate, 0) for gate in gates)
        memory.write(IDT, table)
        return Segment(0, 0, len(table) - 1, IDT)


def _real_vectors() -> list[int]:
    return [half for vector in range(VECTORS) for half in (handler(vector), 0)]


def _touch_page_tables(memory: GuestMemory, *, user: bool) -> None:
    """Accessed and dirty already, as processors set these bits at times of their own."""
    size = PAGE_TABLES_END - PAGE_TABLES
    rights = ACCESSED_DIRTY | (USER if user else 0)
    entries = struct.unpack(f"<{size // 8}Q", memory.read(PAGE_TABLES, size))
    touched = (entry | rights if entry else 0 for entry in entries)
    memory.write(PAGE_TABLES, struct.pack(f"<{size // 8}Q", *touched))


def _user(memory: GuestMemory) -> Registers:
    """Ring 3: its segments, and a task state segment with the stack for faults."""
    task = (descriptor(TASK), TASK.base >> 32)
    gdt = memory.read(GDT, 0x20) + struct.pack(
        "<5Q", 0, descriptor(USER_CODE), descriptor(USER_DATA), *task
    )
    memory.write(GDT, gdt)
    memory.write(TSS + 4, struct.pack("<Q", KERNEL_STACK))
    return {
        **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), USER_DATA),
        "cs": USER_CODE,
        "tr": TASK,
        "gdtr": Segment(0, 0, len(gdt) - 1, GDT),
        "cr4": 0x20 | CR4_SSE,
        "rflags": RFLAGS_RESERVED | INTERRUPTS,
    }
