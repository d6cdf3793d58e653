"""Genode's acceptance scenario vmm_x86 (GENODE 19.05, run/vmm_x86.run): four vCPUs, two handler threads,
no memory at first, one page of HLTs and an endless loop, and pauses in every state.

Two rules of ours make the lines deterministic where Genode's test has a timer: a pause is asked for when
the exit before it was handled, and the endless loop is paused from the other thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from dataspace._page import wait_any
from dataspace.vcpu_page import Reason
from tests.conformance.claims import needs
from vmm_client.connection import Connection
from vmm_client.exits import Exit
from vmm_client.ram import Ram
from vmm_client.session import Session
from vmm_client.vcpu import Vcpu

PAGE = 4096
RESET_PAGE = 0xFFFFF000
CODE = bytes.fromhex("f4 f4 ebfe f4")  # hlt; hlt; jmp self; hlt
PATIENCE = 20.0

Line = tuple[str, int]  # reason, ip within the segment

# After each HLT and PAUSED: how far to skip before running on, None to stay stopped.
SCRIPTS: Final[list[list[int | None]]] = [
    [None],
    [0, 0, 0, 2, 2, 0, None],
    [0, 0, 0, 1, 0, None],
    [None],
]
BEGIN: Final = [("STARTUP", 0xFFF0), ("HLT", 0xFFF0)]
TWO_PAUSES: Final = [("PAUSED", 0xFFF0), ("HLT", 0xFFF0), ("PAUSED", 0xFFF0)]
TRACES: Final[list[list[Line]]] = [
    BEGIN,
    [*BEGIN, *TWO_PAUSES, ("PAUSED", 0xFFF2), ("HLT", 0xFFF4), ("PAUSED", 0xFFF4)],
    [*BEGIN, *TWO_PAUSES, ("HLT", 0xFFF1), ("PAUSED", 0xFFF1)],
    BEGIN,
]


class Guest:
    """One vCPU and what happened to it: `lines`, and the thread that handled each."""

    def __init__(self, vcpu: Vcpu, script: list[int | None]) -> None:
        self.vcpu = vcpu
        self.lines: list[Line] = []
        self.threads: set[str] = set()
        self.fault_addresses: list[int] = []
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


@needs("exit:MEMORY_FAULT", "exit:PAUSED")
def test_vmm_x86(client: Connection, engine: str, transport: str) -> None:
    with client.create_session(engine) as session, client.create_ram(PAGE) as page:
        scenario(session, page, stream=transport == "stream")


@needs("exit:MEMORY_FAULT", "exit:PAUSED")
def test_eight_at_once(client: Connection, engine: str, transport: str) -> None:
    """Eight sessions of one client, of four vCPUs and two threads each."""

    def one(_: int) -> None:
        with client.create_session(engine) as session, client.create_ram(PAGE) as page:
            scenario(session, page, stream=transport == "stream")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == [None] * 8


def scenario(session: Session, page: Ram, *, stream: bool) -> None:
    """As many of the four vCPUs as the engine can have, and the trace that is the same on all."""
    page.write(0xFF0, CODE)
    count = min(len(SCRIPTS), session.capabilities.max_vcpus)
    vcpus = [session.create_vcpu(index, stream=stream) for index in range(count)]
    guests = [Guest(vcpu, list(script)) for vcpu, script in zip(vcpus, SCRIPTS, strict=False)]

    def attach() -> None:
        session.attach(page, gpa=RESET_PAGE)

    with ThreadPoolExecutor(1, "ep0") as ep0, ThreadPoolExecutor(1, "ep1") as ep1:
        running = [
            ep0.submit(serve, guests[:2], attach, pause_what_halted),
            ep1.submit(serve, guests[2:], attach, pause_what_halted),
        ]
        for handler in running:
            handler.result(PATIENCE)

    assert [guest.lines for guest in guests] == TRACES[:count]
    assert [guest.threads for guest in guests] == [{"ep0_0"}, {"ep0_0"}, {"ep1_0"}, {"ep1_0"}][
        :count
    ]
    faults = [address for guest in guests for address in guest.fault_addresses]
    assert faults
    assert {address & -PAGE for address in faults} == {RESET_PAGE}
