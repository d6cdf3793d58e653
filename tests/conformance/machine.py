"""A small machine as a VMM makes it: RAM at 0, vCPUs, and guests assembled from source."""

from __future__ import annotations

from typing import Final

from dataspace.registers import Segment
from dataspace.vcpu_page import ExitFlag, Reason
from tests.conformance.claims import claims_of, require
from tests.guests.assemble import assemble
from vmm_client.exits import Exit
from vmm_client.ram import Ram
from vmm_client.session import Session
from vmm_client.vcpu import Vcpu

PATIENCE: Final = 20.0  # seconds until a test gives up on an exit
PAGE: Final = 4096
ORIGIN: Final = 0x1000  # where guests are loaded
DATA: Final = 0x4000  # free for the test
STACK: Final = 0x8000
PAGE_TABLES: Final = 0x9000  # three pages: the first GiB, identity, user accessible
TABLES: Final = 0xC000  # a GDT; half a page behind it a TSS
IDT: Final = 0xD000
HOLE: Final = 0x100000  # nothing is attached there

FLAT_CODE: Final = Segment(0x08, 0xC9B, 0xFFFFFFFF, 0)
FLAT_DATA: Final = Segment(0x10, 0xC93, 0xFFFFFFFF, 0)
LONG_CODE: Final = Segment(0x18, 0xA9B, 0xFFFFFFFF, 0)
USER_DATA: Final = Segment(0x33, 0xCF3, 0xFFFFFFFF, 0)
USER_CODE: Final = Segment(0x3B, 0xAFB, 0xFFFFFFFF, 0)
TASK: Final = Segment(0x40, 0x8B, 0x67, TABLES + 0x800)
GDT: Final = (
    0,
    0x00CF9B000000FFFF,  # 08 code, 32 bits
    0x00CF93000000FFFF,  # 10 data
    0x00AF9B000000FFFF,  # 18 code, 64 bits
    0x00009B000000FFFF,  # 20 code, 16 bits
    0,
    0x00CFF3000000FFFF,  # 33 data of ring 3
    0x00AFFB000000FFFF,  # 3b code of ring 3, 64 bits
    (TASK.base >> 16 & 0xFF) << 32 | 0x0000890000000067 | (TASK.base & 0xFFFF) << 16,
    0,
)

Values = dict[str, int | Segment]

_TABLES: Final[Values] = {
    "gdtr": Segment(0, 0, 8 * len(GDT) - 1, TABLES),
    "idtr": Segment(0, 0, 0xFFF, IDT),
}
_LONG: Final[Values] = {
    **_TABLES,
    "cr0": 0x80000011,
    "cr3": PAGE_TABLES,
    "cr4": 0x20,
    "efer": 0x500,
    "tr": TASK,
}


def _flat(code: Segment, data: Segment) -> Values:
    return {"cs": code, **dict.fromkeys(("ds", "es", "ss", "fs", "gs"), data)}


MODES: Final[dict[str, Values]] = {
    "real": {"cs": Segment(0, 0x9B, 0xFFFF, 0)},
    "protected": {**_TABLES, "cr0": 0x11, **_flat(FLAT_CODE, FLAT_DATA)},
    "long": {**_LONG, **_flat(LONG_CODE, FLAT_DATA)},
    "user": {**_LONG, **_flat(USER_CODE, USER_DATA)},
}
BITS: Final = {"real": 16, "protected": 32, "long": 64, "user": 64}
MID_INSTRUCTION: Final = (Reason.PORT, Reason.MMIO, Reason.MSR)


class Machine:
    """A session whose vCPUs have one transport, and RAM bytes of memory at 0."""

    RAM: Final = 16 * PAGE

    def __init__(self, session: Session, ram: Ram, *, stream: bool) -> None:
        self.session = session
        self.ram = ram
        self.claims = claims_of(session.capabilities)
        self._stream = stream
        session.attach(ram, 0)
        ram.write(TABLES, b"".join(entry.to_bytes(8, "little") for entry in GDT))
        ram.write(TASK.base + 4, STACK.to_bytes(8, "little"))  # of ring 0, in a TSS of 64 bits

    def require(self, *claims: str) -> None:
        """Skip the test unless the engine claims this."""
        require(self.session.engine, self.claims, set(claims))

    def widest(self) -> str:
        """The mode with the most registers."""
        return "long" if "feature:long_mode" in self.claims else "protected"

    def load(self, source: str, mode: str = "protected", at: int = ORIGIN) -> bytes:
        """Assemble a guest into memory; its code is returned."""
        code = assemble(source, BITS[mode], at)
        self.ram.write(at, code)
        return code

    def unstarted(self, index: int = 0) -> Vcpu:
        """A vCPU that never ran."""
        return self.session.create_vcpu(index, stream=self._stream)

    def vcpu(self, index: int = 0) -> Vcpu:
        """A vCPU at STARTUP."""
        vcpu = self.unstarted(index)
        expect(vcpu, Reason.STARTUP)
        return vcpu

    def guest(
        self, source: str, mode: str = "protected", *, index: int = 0, at: int = ORIGIN
    ) -> Vcpu:
        """A vCPU that is about to execute `source` in a mode of MODES."""
        self.load(source, mode, at)
        return self.enter(self.vcpu(index), mode, at)

    def enter(self, vcpu: Vcpu, mode: str, at: int = ORIGIN) -> Vcpu:
        """Charge a stopped vCPU with a mode. Skips where the engine has none of 64 bits."""
        if BITS[mode] == 64:
            self.require("feature:long_mode")
            self.page_tables()
        vcpu.registers.update({**MODES[mode], "rip": at, "rflags": 2, "rsp": STACK})
        return vcpu

    def page_tables(self) -> None:
        """Those of the 64-bit modes: the first GiB, where it is, in pages of 2 MiB."""
        for level in range(2):
            entry = PAGE_TABLES + (level + 1) * PAGE | 7
            self.ram.write(PAGE_TABLES + level * PAGE, entry.to_bytes(8, "little"))
        directory = b"".join((number << 21 | 0x87).to_bytes(8, "little") for number in range(512))
        self.ram.write(PAGE_TABLES + 2 * PAGE, directory)

    def word(self, at: int, size: int = 4) -> int:
        """A number in memory."""
        return int.from_bytes(self.ram.read(at, size), "little")


def expect(vcpu: Vcpu, reason: Reason) -> Exit:
    """Run until the next exit, which must be well-formed and have this reason."""
    return arrived(vcpu, vcpu.turn(PATIENCE), reason)


def awaited(vcpu: Vcpu, reason: Reason) -> Exit:
    """As `expect`, of a vCPU that runs."""
    return arrived(vcpu, vcpu.wait(PATIENCE), reason)


def arrived(vcpu: Vcpu, exit_: Exit | None, reason: Reason) -> Exit:
    """Check what the contract says of every exit."""
    assert exit_ is not None, f"no exit within {PATIENCE} seconds"
    assert exit_.reason is reason, exit_
    assert exit_.mid_instruction == (reason in MID_INSTRUCTION), exit_
    if exit_.mid_instruction:
        assert not list(vcpu.registers), "registers in the middle of an instruction"
        assert exit_.size in {1, 2, 4, 8}, exit_
        assert 1 <= exit_.size * exit_.count <= 256, exit_
    if exit_.interruptible:
        assert exit_.flags & ExitFlag.IF, exit_
    if exit_.ip is not None:
        assert exit_.instruction_length <= 15, exit_
    return exit_
