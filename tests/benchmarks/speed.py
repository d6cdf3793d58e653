"""How fast the software CPU executes guest code that does not exit."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Final

from tests.benchmarks.guest import ORIGIN, PORT, Guest, guest
from tests.benchmarks.result import Result
from tests.benchmarks.rounds import in_turns
from tests.benchmarks.workplace import Benchmark, Workplace
from tests.guests.assemble import assemble

TURNS: Final = 2_000_000
SCRATCH: Final = ORIGIN + 0x8000  # not in the code's page: a write there throws decoded code away
SHELL: Final = """
start: mov ecx, {turns}
       mov edi, {scratch}
again: {body}
       dec ecx
       jnz again
       out {port}, al
       jmp start
callee: ret
"""
# By name: the body, and the instructions of one turn with `dec` and `jnz`.
BODIES: Final = {
    "soft.mips": ("add rax, rcx; mov [rdi], rax; mov rdx, [rdi]; add rbx, rdx", 6),
    "soft.mips.call_ret": ("call callee", 4),
}


def mips(running: Guest, instructions: int) -> float:
    """Of one run through the loop, from its exit to the next: millions of instructions a second."""
    return TURNS * instructions * 1e3 / running.serve(1)


def measure(at: Workplace) -> list[Result]:
    """One guest for each loop, in turns."""
    with ExitStack() as stack:
        measures = {}
        for name, (body, instructions) in BODIES.items():
            code = assemble(
                SHELL.format(turns=TURNS, scratch=SCRATCH, body=body, port=PORT), 64, ORIGIN
            )
            running = stack.enter_context(guest(at.core, "soft", code))
            measures[name] = partial(mips, running, instructions)
        samples = in_turns(at.effort.rounds, measures)
    return [Result.of(name, "MIPS", samples[name]) for name in BODIES]


SOFT = Benchmark(tuple(BODIES), measure, engine="soft")
