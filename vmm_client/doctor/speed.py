"""How fast an engine executes, roughly: a loop of two instructions, in each mode."""

from __future__ import annotations

import time
from typing import Final

from vmm_client.connection import Connection
from vmm_client.doctor import guests
from vmm_client.doctor.probes import TIME_LIMIT_SECONDS, Probe, bench
from vmm_client.doctor.tables import enter_long_mode, enter_protected_mode, enter_real_mode
from vmm_client.exits import Exit
from vmm_client.vcpu import Vcpu

FIRST_ROUNDS: Final = 5_000  # 10 ms in an emulator of 1 MIPS
MOST_ROUNDS: Final = 1 << 26
GROWTH: Final = 16
ENOUGH_SECONDS: Final = 0.002  # against which an exit does not count any more
INSTRUCTIONS_PER_ROUND: Final = 2

GAUGES: Final = (
    Probe("real mode", enter_real_mode, guests.SPEED_16),
    Probe("protected mode", enter_protected_mode, guests.SPEED_32),
    Probe("long mode, ring 0", enter_long_mode, guests.SPEED_64),
    Probe("long mode, ring 3", enter_long_mode, guests.RING_3, user=guests.SPEED_RING_3),
)


def instructions_per_second(connection: Connection, engine: str, gauge: Probe) -> float | None:
    """Measured with one of GAUGES; None where the guest does not get through its loop.

    Raises what `examine` raises.
    """
    rounds = FIRST_ROUNDS
    with bench(connection, engine) as (vcpu, memory):
        vcpu.registers.update(gauge.prepare(memory))
        while (asked := _next(vcpu)) and asked.is_read:
            asked.reply(rounds)
            begin = time.perf_counter()
            told = _next(vcpu)
            seconds = time.perf_counter() - begin
            if told is None or told.is_read:
                return None
            if seconds >= ENOUGH_SECONDS or rounds >= MOST_ROUNDS:
                return INSTRUCTIONS_PER_ROUND * rounds / seconds
            rounds *= GROWTH
    return None


def _next(vcpu: Vcpu) -> Exit | None:
    """The next access to the gauge's port or address; None for anything else."""
    vcpu.run()
    exit_ = vcpu.wait(TIME_LIMIT_SECONDS)
    if exit_ and exit_.address in (guests.SPEED_PORT, guests.SPEED_GPA):
        return exit_
    return None
