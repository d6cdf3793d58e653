"""Genode's acceptance scenario vmm_x86 (GENODE 19.05, run/vmm_x86.run): four vCPUs, two handler threads,
no memory at first, one page of HLTs and an endless loop, and pauses in every state.

Two rules of ours make the lines deterministic where Genode's test has a timer: a pause is asked for when
the exit before it was handled, and the endless loop is paused from the other thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from dataspace._page import wait_any
from dataspace.vcpu_page import Reason
from tests.integration.engines import on_every_engine
from tests.integration.running_core import RunningCore, Stubs
from vmm_client import connect
from vmm_client.exits import Exit
from vmm_client.session import Session
from vmm_client.vcpu import Vcpu

PAGE = 4096
RESET_PAGE = 0xFFFFF000
CODE = bytes.fromhex("f4 f4 ebfe f4")  # hlt; hlt; jmp self; hlt
PATIENCE = 20.0

Line = tuple[str, int]  # reason, ip within the segment


class Guest:
    """One vCPU and what happened to it: `lines`, and the thread that handled each."""

    def __init__(self, vcpu: Vcpu, script: list[int | None]) -> None:
        self.vcpu = vcpu
        self.lines: list[Line] = []
        self.threads: set[str] = set()
        self.fault_addresses: list[int] = []
        # after each HLT and PAUSED: how far to skip before running on, None to stay stopped
        self._script = script
        self._looping = False

    @property
    def done(self) -> bool:
        """Stopped for good."""
        return not self._script

    def handle(self, exit_: Exit, attach: Callable[[], None]) -> bool:
        """One exit; False to leave the vCPU stopped."""
        if exit_.reason is Reason.MEMORY_FAULT:
            self.fault_addresses.append(exit_.address)
            attach()
            return True
        self.threads.add(threading.current_thread().name)
        self.lines.append((exit_.reason.name, self._ip(exit_)))
        if exit_.reason is Reason.STARTUP:
            return True
        skip = self._script.pop(0)
        if skip is None:
            return False
        if skip:
            self.vcpu.registers.rip = self._ip(exit_) + skip
        return True

    def _ip(self, exit_: Exit) -> int:
        ip = self.vcpu.registers.rip
        assert exit_.ip is None or exit_.ip == ip
        return ip


def serve(guests: list[Guest], attach: Callable[[], None], pause: Callable[[Guest], None]) -> None:
    """A handler thread: several vCPUs, each run on after its exit or left stopped."""
    running = {guest.vcpu: guest for guest in guests}
    for vcpu in running:
        vcpu.want("rip")
        vcpu.run()
    while running:
        waiters, seen = zip(*(vcpu.awaited() for vcpu in running), strict=True)
        assert wait_any(waiters, seen, PATIENCE) >= 0, [guest.lines for guest in guests]
        for vcpu, guest in list(running.items()):
            exit_ = vcpu.poll()
            if exit_ is None:
                continue
            if not guest.handle(exit_, attach):
                del running[vcpu]
                continue
            pause(guest)
            vcpu.run()


def pause_what_halted(guest: Guest) -> None:
    """The timer of Genode's test: every HLT is followed by a pause, and the endless loop is left by
    one from outside."""
    reason, ip = guest.lines[-1] if guest.lines else ("", 0)
    rip = guest.vcpu.registers.rip
    if reason == "HLT" and rip == ip:
        guest.vcpu.pause()
    elif rip == 0xFFF2:
        threading.Thread(target=guest.vcpu.pause).start()


@on_every_engine
def test_vmm_x86(core: RunningCore, stubs: Stubs, engine: str) -> None:
    with connect(str(core.socket)) as client, client.create_session(engine) as session:
        assert stubs.totals().sessions == 1
        scenario(session, lambda: client.create_ram(PAGE))


def scenario(session: Session, create_page: Callable[[], object]) -> None:
    page = create_page()
    page.write(0xFF0, CODE)  # type: ignore[attr-defined]

    def attach() -> None:
        session.attach(page, gpa=RESET_PAGE)  # type: ignore[arg-type]

    scripts: list[list[int | None]] = [
        [None],
        [0, 0, 0, 2, 2, 0, None],
        [0, 0, 0, 1, 0, None],
        [None],
    ]
    guests = [Guest(session.create_vcpu(index), script) for index, script in enumerate(scripts)]
    problems: list[BaseException] = []

    def handler(mine: list[Guest]) -> None:
        try:
            serve(mine, attach, pause_what_halted)
        except BaseException as problem:
            problems.append(problem)

    threads = [
        threading.Thread(target=handler, args=(guests[:2],), name="ep0"),
        threading.Thread(target=handler, args=(guests[2:],), name="ep1"),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert problems == []

    assert guests[0].lines == [("STARTUP", 0xFFF0), ("HLT", 0xFFF0)]
    assert guests[1].lines == [
        ("STARTUP", 0xFFF0),
        ("HLT", 0xFFF0),
        ("PAUSED", 0xFFF0),
        ("HLT", 0xFFF0),
        ("PAUSED", 0xFFF0),
        ("PAUSED", 0xFFF2),
        ("HLT", 0xFFF4),
        ("PAUSED", 0xFFF4),
    ]
    assert guests[2].lines == [
        ("STARTUP", 0xFFF0),
        ("HLT", 0xFFF0),
        ("PAUSED", 0xFFF0),
        ("HLT", 0xFFF0),
        ("PAUSED", 0xFFF0),
        ("HLT", 0xFFF1),
        ("PAUSED", 0xFFF1),
    ]
    assert guests[3].lines == guests[0].lines
    assert [guest.threads for guest in guests] == [{"ep0"}, {"ep0"}, {"ep1"}, {"ep1"}]
    faults = [address for guest in guests for address in guest.fault_addresses]
    assert faults
    assert {address & -PAGE for address in faults} == {RESET_PAGE}


@on_every_engine
def test_the_state_at_startup(core: RunningCore, stubs: Stubs, engine: str) -> None:
    with connect(str(core.socket)) as client, client.create_session(engine) as session:
        assert stubs.totals().sessions == 1
        vcpu = session.create_vcpu()
        vcpu.run()
        exit_ = vcpu.wait(PATIENCE)
        assert exit_
        assert exit_.reason is Reason.STARTUP
        registers = vcpu.registers
        assert (registers.rip, registers.cs.base, registers.cs.selector) == (
            0xFFF0,
            0xFFFF0000,
            0xF000,
        )
        assert registers.cr0 & ~0x60000000 == 0x10  # CD and NW are a machine's own
        assert registers.dr7 == 0x400
        assert registers.rflags == 2
        assert registers.rdx & ~0xFFFFF == 0
        assert registers.rdx != 0  # the processor's signature
