"""A VMM that serves a hostile guest as well as it can, and has it pause again and again.

    python -m tests.hostile.guest_vmm SOCKET UID SEED SECONDS ENGINE GUEST

GUEST is a name of GUESTS. See `attackers.py`. Each pause must be heard, and what the guest does with its
memory costs what was charged at first.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

from vmsession.v1 import core_pb2

from dataspace.vcpu_page import Reason
from tests.engine.harness import MODES, ORIGIN, STACK
from tests.guests.assemble import assemble
from tests.hostile.attackers import Findings
from tests.integration.running_core import Stubs, become_other_user
from vmm_client import Vcpu, connect

RAM: Final = 64 << 20
PAUSES_EVERY: Final = 0.05
HEARD_SECONDS: Final = 5.0
VECTOR: Final = 0x20
HANDLER: Final = 0x1800
TOUCHED_FROM: Final = 0x100000


class Guest(NamedTuple):
    """What it does, and how it begins. `storms`: the VMM injects whatever it takes."""

    source: str
    mode: str = "protected"
    storms: bool = False


GUESTS: Final = {
    "loops": Guest("cli; 1: jmp 1b"),
    "ports": Guest("1: out 0x80, al; in al, 0x60; in eax, dx; jmp 1b"),
    "devices": Guest("1: mov [0x10000000], eax; mov ebx, [0x10000004]; jmp 1b"),
    "strings": Guest(
        "1: mov ecx, 4096; mov edi, 0x20000; rep insb; mov ecx, 4096; mov esi, 0x20000; rep outsb;"
        " jmp 1b"
    ),
    "interrupts": Guest("sti; 1: inc eax; jmp 1b", "real", storms=True),
    "touches": Guest(
        f"2: mov edi, {TOUCHED_FROM}; 1: inc dword ptr [edi]; add edi, 4096; cmp edi, {RAM}; jb 1b;"
        " out 0x80, al; jmp 2b"
    ),
}
BITS: Final = {"real": 16, "protected": 32}


class Service:
    """Serves one vCPU, and asks it to pause."""

    def __init__(self, vcpu: Vcpu, guest: Guest) -> None:
        self.findings = Findings()
        self._vcpu = vcpu
        self._guest = guest
        self._asked = 0.0
        self._next = 0.0
        self._worst = 0.0

    def serve(self, seconds: float) -> None:
        """So long."""
        self._begin()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._ask()
            if exit_ := self._vcpu.wait(PAUSES_EVERY):
                self._answer(exit_.reason)
                self._vcpu.run()
        self.findings.outcomes["longest pause, microseconds"] = round(self._worst * 1e6)

    def _begin(self) -> None:
        self._vcpu.run()
        startup = self._vcpu.wait(HEARD_SECONDS)
        assert startup
        assert startup.reason == Reason.STARTUP
        for name, value in MODES[self._guest.mode].items():
            self._vcpu.reply.charge(name, value)
        for name, number in (("rip", ORIGIN), ("rsp", STACK), ("rflags", 2)):
            self._vcpu.reply.charge(name, number)
        self._vcpu.run()

    def _ask(self) -> None:
        now = time.monotonic()
        if not self._asked and now > self._next:
            self._asked = now
            self._vcpu.pause()
        if self._guest.storms:
            self._vcpu.request_window()
        if self._asked and now - self._asked > HEARD_SECONDS:
            self.findings.wrong.append(f"a pause was not heard within {HEARD_SECONDS} s")
            self._asked = 0.0

    def _answer(self, reason: Reason) -> None:
        exit_, now = self._vcpu.exit, time.monotonic()
        self.findings.outcomes[reason.name] += 1
        if reason == Reason.PAUSED:
            self._worst = max(self._worst, now - self._asked)
            self._asked, self._next = 0.0, now + PAUSES_EVERY
        elif reason in {Reason.PORT, Reason.MMIO}:
            exit_.accept()
        elif reason != Reason.WINDOW:
            self.findings.wrong.append(str(exit_))
        if self._guest.storms and exit_.interruptible:
            self._vcpu.inject(VECTOR)


def serve(core: Path, seconds: float, engine: str, guest: Guest) -> Findings:
    """A machine of its own."""
    stubs = Stubs(core)
    with connect(str(core)) as connection:
        ram = connection.create_ram(RAM)
        ram.write(VECTOR * 4, HANDLER.to_bytes(4, "little"))
        ram.write(HANDLER, b"\xcf")  # iret
        ram.write(ORIGIN, assemble(guest.source, BITS[guest.mode], ORIGIN))
        with connection.create_session(engine, label="hostile guest") as session:
            session.attach(ram, gpa=0)
            service = Service(session.create_vcpu(), guest)
            charged = stubs.core.GetInfo(core_pb2.GetInfoRequest()).ram.used
            service.serve(seconds)
            now = stubs.core.GetInfo(core_pb2.GetInfoRequest()).ram.used
        if now != charged or charged < RAM:
            service.findings.wrong.append(f"{now} bytes are charged, {charged} were")
    stubs.close()
    return service.findings


def main() -> None:
    """The process itself."""
    socket, uid, _, seconds, engine, name = sys.argv[1:]
    become_other_user(int(uid))
    findings = serve(Path(socket), float(seconds), engine, GUESTS[name])
    told = {f"{engine} {name}: {what}": count for what, count in findings.outcomes.items()}
    findings.outcomes = Counter(told)
    findings.tell()


if __name__ == "__main__":
    main()
