"""A guest that tests the CPU under it from real to long mode, exceptions, system calls and interrupts
included: `tests/guests/modes.S`."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from core_service.engine.protocol import Transport
from dataspace.registers import Segment
from dataspace.vcpu_page import ExitFlag, InjectType, Reason, ReplyFlag
from tests.engine.harness import Engine, Vcpu, memory
from tests.guests.assemble import assemble

pytestmark = pytest.mark.parametrize("variant", ["soft"], indirect=True)

ORIGIN: Final = 0x8000
RAM_BYTES: Final = 16 << 20
VECTOR: Final = 0x40
REPORT: Final = 0xE9
TEXT: Final = 0xEA
CONSTANT_PORTS: Final = {0x71: 0x5A, 0x72: 0xBEEF, 0x74: 0xDEADBEEF}
STRING_PORTS: Final = {0xEB: tuple(b"WORLD"), 0xEC: (0, 1, 0x1234), 0xEE: (0, 0xCAFEBABE)}

INJECT_NOW, INJECT_AT_WINDOW, INJECT_AT_HLT, PAUSE = 1, 2, 3, 4


class Board:
    """The VMM that the guest expects: what its ports and memory answer, and what it asks for."""

    def __init__(self, vcpu: Vcpu) -> None:
        self.vcpu = vcpu
        self.report = bytearray()
        self.text = bytearray()
        self.strings = {port: iter(values * 2) for port, values in STRING_PORTS.items()}
        self.expects_hlt = False

    def run(self) -> Reason:
        """Until the guest stops for good."""
        while self.handle(self.vcpu.run().reason):
            pass
        return self.vcpu.reason

    def handle(self, reason: int) -> bool:
        """Prepare the reply. False: the guest has ended."""
        if reason == Reason.PORT:
            self.port()
        elif reason == Reason.MMIO:
            self.device()
        elif reason == Reason.MSR:
            self.vcpu.reply.set_flags(ReplyFlag.FAULT)
        elif reason == Reason.PAUSED:
            self.vcpu.charge(r10=1)
        elif reason == Reason.WINDOW or (reason == Reason.HLT and self.expects_hlt):
            self.expects_hlt = False
            self.vcpu.reply.inject(InjectType.INTERRUPT, VECTOR)
        else:
            return False
        return True

    def port(self) -> None:
        """Constants, strings, the report and the text."""
        exit_ = self.vcpu.exit
        if exit_.flags & ExitFlag.READ:
            strings = self.strings.get(exit_.address)
            self.vcpu.reply.set_value(next(strings) if strings else CONSTANT_PORTS[exit_.address])
        elif exit_.address == TEXT:
            self.text.append(exit_.value)
        elif exit_.address == REPORT:
            self.report.append(exit_.value)
            self.act(exit_.value)

    def act(self, request: int) -> None:
        """What the guest asks for."""
        if request == INJECT_NOW:
            self.vcpu.reply.inject(InjectType.INTERRUPT, VECTOR)
        elif request == INJECT_AT_WINDOW:
            self.vcpu.window()
        elif request == PAUSE:
            self.vcpu.pause()
        self.expects_hlt = request == INJECT_AT_HLT

    def device(self) -> None:
        """A device whose every byte reads as its address."""
        exit_ = self.vcpu.exit
        if exit_.flags & ExitFlag.READ:
            first = exit_.address & 0xFF
            self.vcpu.reply.set_data(bytes(range(first, first + exit_.size)))


@pytest.fixture
def board(engine: Engine) -> Iterator[Board]:
    """The guest, about to begin in real mode."""
    image = assemble((Path(__file__).parents[1] / "guests" / "modes.S").read_text(), 16, ORIGIN)
    fd = memory(RAM_BYTES)
    try:
        engine.map(0, fd, RAM_BYTES)
        with mmap.mmap(fd, RAM_BYTES) as view:
            view[ORIGIN : ORIGIN + len(image)] = image
    finally:
        os.close(fd)
    vcpu = Vcpu(engine, Transport.PAGE)
    vcpu.expect(Reason.STARTUP)
    vcpu.charge(rip=ORIGIN, cs=Segment(0, 0x9B, 0xFFFF, 0))
    yield Board(vcpu)
    vcpu.close()


def test_all_modes(board: Board) -> None:
    """Every part passes, no check fails, and the triple fault at the end is a shutdown."""
    assert board.run() == Reason.SHUTDOWN
    assert bytes(board.report) == b"RISVPpLEsMCFY\x01\x02X\x03HmG\x04Z\n"
    assert bytes(board.text) == b"helloWORLD" * 2
