"""Random guest code in all modes on the software engine, which must survive it:

    python -m tests.engine.soft_fuzz --runs 10000 --seed 1 [--wild] [--engine EXECUTABLE]

A run is 256 random bytes, weighted towards prefixes and escapes, from a sane state of one of MODES,
with handlers for exceptions. It ends with an exit that does not resume,
after `EXITS` others, or when it is paused because it would not end. With `--wild` it begins with some
registers that are anything, an event, a step or a breakpoint. The exit status is 1 when an engine
died; the run that killed it is repeated with `--seed SEED --runs 1`. 100,000 runs take two minutes.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from core_service.engine.native import build
from core_service.engine.protocol import Transport
from dataspace.registers import SCALARS, SEGMENTS, Segment
from dataspace.vcpu_page import ExitFlag, InjectType, Reason, ReplyFlag
from tests import sanitizers
from tests.engine.harness import DATA_SEGMENTS, Engine, EngineGoneError, Vcpu, environment, memory

INSTALLED: Final = build.IN_TREE / "vmsession-soft"
EXITS: Final = 30
GUEST_SECONDS: Final = 0.002
PATIENCE: Final = 5.0

RAM_BYTES: Final = 4 << 20
GDT: Final = 0x7000
HANDLER: Final = 0x7F00
CODE: Final = 0x8000
CODE_BYTES: Final = 256
STACK: Final = 0x6000
PAGE_TABLES: Final = 0x100000
IDT: Final = 0x110000
TASK: Final = 0x7100  # state segments: of 32 bits, and behind it of 64
POINTERS_PAE: Final = PAGE_TABLES + 0x3000
DIRECTORY_32: Final = PAGE_TABLES + 0x4000

LIKELY: Final = bytes.fromhex("0f66f2f348c5c4620f01aec7383a")
VALUES: Final = (0, 1, CODE, 0x3FF000, 0x200000, 0xFFFFFFFF)
ENDS: Final = frozenset(
    {
        *(Reason.HLT, Reason.SHUTDOWN, Reason.MEMORY_FAULT, Reason.INTERNAL_ERROR),
        *(Reason.PAUSED, Reason.INVALID_STATE),
    }
)
# Where a register's meaning changes: reserved bits, limits, control registers of other modes, flags.
EDGES: Final = (
    *(0, 1, 7, 8, 0x10, 0x20, 0xFF, 0xFFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32),
    *(
        1 << 38,
        1 << 39,
        1 << 47,
        0xFFFF800000000000,
        0x11,
        0x80000011,
        0x620,
        0x40620,
        0x500,
        0xD01,
    ),
    *(0x202, 0x302, 0x10002, 0x20002, 0x23002, CODE, STACK, PAGE_TABLES, IDT, GDT),
)
RIGHTS: Final = (0x9B, 0x93, 0xC9B, 0xC93, 0xA9B, 0xE9B, 0x82, 0x83, 0x87, 0x89, 0x8B, 0)

_GENERAL: Final = (
    *("rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi"),
    *(f"r{number}" for number in range(8, 16)),
)


class Mode(NamedTuple):
    """Where a run begins: the control registers and segments of a CPU mode."""

    cr0: int
    cr4: int
    efer: int
    code: Segment
    data: Segment
    cr3: int = PAGE_TABLES
    rflags: int = 2
    task: Segment | None = None


REAL_CODE: Final = Segment(0, 0x9B, 0xFFFF, 0)
REAL_DATA: Final = Segment(0, 0x93, 0xFFFF, 0)
CODE_32: Final = Segment(24, 0xC9B, 0xFFFFFFFF, 0)
CODE_64: Final = Segment(8, 0xA9B, 0xFFFFFFFF, 0)
DATA: Final = Segment(16, 0xC93, 0xFFFFFFFF, 0)
USER_32: Final = Segment(0x23, 0xCFB, 0xFFFFFFFF, 0)
USER_64: Final = Segment(0x33, 0xAFB, 0xFFFFFFFF, 0)
USER_DATA: Final = Segment(0x2B, 0xCF3, 0xFFFFFFFF, 0)
VIRTUAL: Final = Segment(0, 0xF3, 0xFFFF, 0)
TASK_32: Final = Segment(0x38, 0x8B, 0x67, TASK)
TASK_64: Final = Segment(0x38, 0x8B, 0x67, TASK + 0x80)

MODES: Final = {
    "real": Mode(0x10, 0x620, 0, REAL_CODE, REAL_DATA),
    "16-bit protected": Mode(0x33, 0x620, 0, REAL_CODE._replace(selector=24), DATA),
    "protected": Mode(0x33, 0x620, 0, CODE_32, DATA),
    "paged": Mode(0x80010033, 0x610, 0, CODE_32, DATA, DIRECTORY_32),
    "PAE": Mode(0x80010033, 0x620, 0, CODE_32, DATA, POINTERS_PAE),
    "user": Mode(0x80010033, 0x610, 0, USER_32, USER_DATA, DIRECTORY_32, 0x202, TASK_32),
    "virtual 8086": Mode(0x33, 0x621, 0, VIRTUAL, VIRTUAL, PAGE_TABLES, 0x23202, TASK_32),
    "long": Mode(0x80010033, 0x40620, 0x501, CODE_64, DATA),
    "compatibility": Mode(0x80010033, 0x40620, 0x501, CODE_32, DATA),
    "long user": Mode(0x80010033, 0x40620, 0x501, USER_64, USER_DATA, PAGE_TABLES, 0x202, TASK_64),
}


DESCRIPTORS: Final = (  # by selector: 8 code of 64 bits, 16 data, 24 code of 32; from 32 on of ring 3
    *(0, 0xAF9A000000FFFF, 0xCF92000000FFFF, 0xCF9A000000FFFF),
    *(0xCFFA000000FFFF, 0xCFF2000000FFFF, 0xAFFA000000FFFF, 0),
)


def quadwords(*values: int) -> bytes:
    """Little-endian."""
    return b"".join(value.to_bytes(8, "little") for value in values)


def furnish(view: mmap.mmap) -> None:
    """What every run finds: page tables for 4 MiB, a GDT, an IDT whose handlers halt."""
    view[PAGE_TABLES : PAGE_TABLES + 8] = quadwords(PAGE_TABLES + 0x1007)
    view[PAGE_TABLES + 0x1000 : PAGE_TABLES + 0x1008] = quadwords(PAGE_TABLES + 0x2007)
    view[PAGE_TABLES + 0x2000 : PAGE_TABLES + 0x2010] = quadwords(0x87, 0x200087)
    view[POINTERS_PAE : POINTERS_PAE + 8] = quadwords(PAGE_TABLES + 0x2001)
    view[DIRECTORY_32 : DIRECTORY_32 + 8] = quadwords(0x87)
    view[GDT : GDT + 64] = quadwords(*DESCRIPTORS)
    view[TASK : TASK + 16] = quadwords(STACK << 32, 16)
    view[TASK + 0x80 : TASK + 0x90] = quadwords(STACK << 32, 0)
    view[IDT : IDT + 4096] = quadwords(0x8E00 << 32 | 8 << 16 | HANDLER, 0) * 256
    view[HANDLER : HANDLER + 4] = b"\xf4" * 4


def random_code(chance: random.Random) -> bytes:
    """Bytes of which three in ten begin an instruction that is not everyday's."""
    return bytes(
        chance.getrandbits(8) if chance.random() < 0.7 else chance.choice(LIKELY)
        for _ in range(CODE_BYTES)
    )


def random_segment(chance: random.Random) -> Segment:
    """With rights of any kind, most of them of some descriptor."""
    rights = chance.choice((*RIGHTS, chance.getrandbits(12)))
    limit = chance.choice((0, 0xFFFF, 0xFFFFFFFF, chance.getrandbits(32)))
    selector = chance.choice((0, 8, 16, 24, 3, chance.getrandbits(16)))
    return Segment(selector, rights, limit, chance.choice((0, *EDGES)))


class Subject:
    """An engine with one vCPU, and the memory that they share with us."""

    def __init__(self, executable: Path, variables: dict[str, str]) -> None:
        self.engine = Engine(executable, environment("soft") | variables)
        self.engine.hello()
        fd = memory(RAM_BYTES)
        try:
            self.engine.map(0, fd, RAM_BYTES)
            self.view = mmap.mmap(fd, RAM_BYTES)
        finally:
            os.close(fd)
        self.vcpu = Vcpu(self.engine, Transport.PAGE)
        self.vcpu.want_all()
        self.vcpu.expect(Reason.STARTUP)
        self.initial = self.vcpu.exit.registers()
        self.vcpu.reply.want(0, 0)

    def close(self) -> int:
        """End the engine and return its status."""
        self.vcpu.close()
        self.view.close()
        with self.engine:
            pass
        assert self.engine.status is not None
        return self.engine.status

    def run(self, seed: int, *, wild: bool = False) -> Reason:
        """One run, and what ended it. Raises EngineGoneError."""
        chance = random.Random(seed)
        self.prepare(chance)
        if wild:
            self.disturb(chance)
        for _ in range(EXITS):
            reason = self.resume()
            if reason in ENDS:
                return reason
            self.answer(chance)
        return self.finish_instruction()

    def prepare(self, chance: random.Random) -> None:
        """Memory, and all registers."""
        self.view[0:CODE] = bytes(CODE)
        furnish(self.view)
        self.view[CODE : CODE + CODE_BYTES] = random_code(chance)
        mode = MODES[chance.choice(list(MODES))]
        tables = {"gdtr": Segment(0, 0, 63, GDT)}
        if mode.task:
            tables["tr"] = mode.task
        if mode.cr0 & 1:
            tables["idtr"] = Segment(0, 0, 4095, IDT)
        general = {name: chance.choice((*VALUES, chance.getrandbits(64))) for name in _GENERAL}
        registers: dict[str, int | Segment] = {
            **self.initial,
            **general,
            **dict.fromkeys(DATA_SEGMENTS, mode.data),
            **tables,
            "cs": mode.code,
            "cr0": mode.cr0,
            "cr3": mode.cr3,
            "pdpte0": PAGE_TABLES + 0x2001,
            "cr4": mode.cr4,
            "efer": mode.efer,
            "xcr0": 7,
            "rflags": mode.rflags,
            "rsp": STACK,
            "rip": CODE,
        }
        self.vcpu.charge(**registers)
        self.vcpu.reply.written([(0, RAM_BYTES)])

    def disturb(self, chance: random.Random) -> None:
        """Registers that nobody would charge, and what else a reply can hold."""
        reply = self.vcpu.reply
        for name in chance.sample(SCALARS, chance.randrange(3)):
            reply.charge(name, chance.choice((*EDGES, chance.getrandbits(64))))
        for name in chance.sample(SEGMENTS, chance.randrange(3)):
            reply.charge(name, random_segment(chance))
        if chance.random() < 0.3:
            reply.inject(chance.choice(list(InjectType)), chance.randrange(32))
        data = chance.random() < 0.5
        reply.set_breakpoints([STACK - 8 if data else CODE + chance.randrange(8)], 1 | data << 16)
        flags = (ReplyFlag.STEP, ReplyFlag.BREAKPOINTS, ReplyFlag.NMI_WINDOW)
        reply.set_flags(sum(flag for flag in flags if chance.random() < 0.3))

    def resume(self) -> Reason:
        """Run until an exit; pause what does not stop."""
        vcpu = self.vcpu
        vcpu.start()
        seen, arrived = vcpu.seen, vcpu.waiter.wait(vcpu.seen, GUEST_SECONDS)
        if arrived == seen:
            vcpu.pause()
            arrived = vcpu.waiter.wait(seen, PATIENCE)
        if arrived == seen:
            self.engine.receive()
            raise EngineGoneError("no exit, though it was paused")
        vcpu.seen = arrived
        vcpu.reply.clear_reply()
        return vcpu.reason

    def answer(self, chance: random.Random) -> None:
        """A device that nobody designed."""
        if self.vcpu.exit.flags & ExitFlag.READ:
            self.vcpu.reply.set_value(chance.getrandbits(64))
        if self.vcpu.reason == Reason.MSR and chance.random() < 0.5:
            self.vcpu.reply.set_flags(ReplyFlag.FAULT)

    def finish_instruction(self) -> Reason:
        """The next run's registers need a boundary."""
        while self.vcpu.exit.flags & ExitFlag.MID_INSTRUCTION:
            self.vcpu.reply.set_flags(ReplyFlag.COMPLETE)
            self.resume()
        return self.vcpu.reason


def campaign(
    runs: int,
    seed: int,
    report: Callable[[str], None] = print,
    *,
    wild: bool = False,
    executable: Path = INSTALLED,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Counter[str]:
    """`runs` runs from `seed` on. Counts what ended them; "died" are those that ended the engine."""
    outcomes: Counter[str] = Counter()
    subject = Subject(executable, dict(variables))
    for number in range(seed, seed + runs):
        try:
            outcomes[subject.run(number, wild=wild).name] += 1
        except EngineGoneError as error:
            outcomes["died"] += 1
            report(f"seed {number}: {error}")
            subject.close()
            subject = Subject(executable, dict(variables))
    if status := subject.close():
        outcomes["died"] += 1
        report(f"the engine ended with status {status}")
    return outcomes


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Random guest code on the software engine.")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the others count up")
    parser.add_argument("--wild", action="store_true", help="from registers that are anything")
    parser.add_argument("--engine", type=Path, default=INSTALLED, help="which executable")
    options = parser.parse_args()
    outcomes = campaign(
        options.runs,
        options.seed,
        wild=options.wild,
        executable=options.engine,
        variables=sanitizers.options("soft"),
    )
    print(dict(outcomes))
    return 1 if outcomes["died"] else 0


if __name__ == "__main__":
    sys.exit(main())
