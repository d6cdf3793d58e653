"""Many streams of instructions through two engines in lockstep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.conformance.diff.instructions import Stream
from tests.guests.assemble import assemble
from vmm_client.diff import DiffMode, Guest, Lockstep, Outcome

LOAD_ADDRESS: Final = 0x10000
DATA: Final = 0x8000  # from there
SLOT: Final = 0x2000  # bytes of a stream's code at most
MEMORY: Final = 128 << 10
BITS: Final = {DiffMode.REAL: 16, DiffMode.PROTECTED: 32, DiffMode.LONG: 64, DiffMode.USER: 64}


@dataclass
class Case:
    """A stream and what became of it."""

    seed: int
    lines: list[str]
    outcome: Outcome


def guests(mode: DiffMode, seeds: range, groups: int) -> Iterator[tuple[int, list[str], Guest]]:
    """Streams as guests; the assembler runs once for all."""
    data_at = DATA if mode is DiffMode.REAL else LOAD_ADDRESS + DATA
    vectors = mode is DiffMode.USER
    streams = [Stream(BITS[mode], data_at, seed, vectors=vectors) for seed in seeds]
    listings = [stream.draw(groups) for stream in streams]
    source = "\n".join(
        f".org {number * SLOT}\n" + "\n".join(lines) for number, lines in enumerate(listings)
    )
    code = assemble(source, BITS[mode])
    for number, (seed, stream, lines) in enumerate(zip(seeds, streams, listings, strict=True)):
        slot = code[number * SLOT : (number + 1) * SLOT]
        yield seed, lines, Guest(slot.ljust(DATA, b"\0") + stream.data(), mode, LOAD_ADDRESS)


def campaign(lockstep: Lockstep, mode: DiffMode, seeds: range, groups: int) -> Iterator[Case]:
    """Run them, instruction by instruction, each until it ends or the engines differ."""
    for seed, lines, guest in guests(mode, seeds, groups):
        yield Case(seed, lines, lockstep.run(guest, step=True, limit=100 * groups, seed=seed))
