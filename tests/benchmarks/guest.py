"""A session whose guest runs a few instructions in 64-bit ring 0, which every engine executes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from time import perf_counter_ns
from typing import Final

from dataspace.vcpu_page import Reason
from vmm_client import Connection, Exit, Vcpu
from vmm_client.boot.flat import Mode, load

PORT: Final = 0xE9
OUT_LOOP: Final = bytes.fromhex("e6e9 ebfc")  # loop: out PORT, al; jmp loop
ORIGIN: Final = 0x10000
MEMORY: Final = 0x20000


class Guest:
    """A vCPU that gives nothing but port I/O, and the exits that are being served."""

    def __init__(self, vcpu: Vcpu, exits: Iterator[Exit]) -> None:
        self.vcpu = vcpu
        self.exits = exits

    def serve(self, count: int) -> float:
        """Serve `count` exits as the least VMM does: nanoseconds an exit."""
        start = perf_counter_ns()
        for exit_ in islice(self.exits, count):
            if exit_.reason is not Reason.PORT:
                raise AssertionError(f"{exit_} is no port I/O")
            if exit_.is_read:
                exit_.reply(0)
        return (perf_counter_ns() - start) / count


@contextmanager
def guest(core: Connection, engine: str, code: bytes = OUT_LOOP) -> Iterator[Guest]:
    """A session of its own with the guest at its first port I/O."""
    with core.create_session(engine, label="bench") as session, core.create_ram(MEMORY) as ram:
        session.attach(ram, gpa=0)
        entry = load(session.memory, code, Mode.LONG, ORIGIN)
        vcpu = session.create_vcpu()
        exits = vcpu.exits()
        startup = next(exits)
        assert startup.reason is Reason.STARTUP, startup
        vcpu.registers.update(entry.registers)
        started = Guest(vcpu, exits)
        started.serve(1)
        yield started
        exits.close()
