"""Events on the software CPU: shadows, NMIs and their window, task priority, faults during delivery."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from core_service.engine.protocol import Transport
from dataspace.registers import Segment
from dataspace.vcpu_page import Activity, ExitFlag, Injection, InjectType, Reason, ReplyFlag
from tests.engine.harness import ORIGIN, STACK, Engine, Vcpu, guest
from tests.guests.assemble import assemble

pytestmark = pytest.mark.parametrize("variant", ["soft", "soft-sanitized"], indirect=True)

HANDLERS: Final = 0x3000  # one every 16 bytes, by vector
IDT: Final = 0x4000
GDT: Final = 0x5000
VECTOR: Final = 0x20
NMI, DOUBLE_FAULT, NOT_PRESENT, PROTECTION, PAGE_FAULT = 2, 8, 11, 13, 14
INTERRUPTS: Final = 0x202  # rflags


def place(vcpu: Vcpu, at: int, content: bytes) -> None:
    """Guest memory, before anything was executed."""
    assert vcpu.memory
    vcpu.memory[at : at + len(content)] = content


@contextmanager
def handled(engine: Engine, source: str, **handlers: str) -> Iterator[Vcpu]:
    """A flat 32-bit guest with a handler for each vector `v<number>`."""
    with guest(engine, Transport.PAGE, source) as vcpu:
        place(vcpu, GDT + 8, struct.pack("<QQ", 0x00CF9A000000FFFF, 0x00CF92000000FFFF))
        for name, handler in handlers.items():
            vector = int(name[1:])
            at = HANDLERS + 16 * vector
            place(vcpu, at, assemble(handler, 32, at))
            place(vcpu, IDT + 8 * vector, struct.pack("<HHHH", at, 8, 0x8E00, 0))
        vcpu.charge(idtr=Segment(0, 0, 0x1FF, IDT), gdtr=Segment(0, 0, 23, GDT))
        yield vcpu


def at_handler(vcpu: Vcpu, vector: int) -> bool:
    """The last exit is the HLT that the handler begins with."""
    return vcpu.exit.ip == HANDLERS + 16 * vector


def returns_to(vcpu: Vcpu) -> int:
    """The eip that the event pushed last."""
    assert vcpu.memory
    at = vcpu.scalar("rsp")
    return int.from_bytes(vcpu.memory[at : at + 4], "little")


# ---- shadows


@pytest.mark.parametrize(
    ("source", "flags", "behind"),
    [("sti; nop; nop; hlt", 2, 2), ("mov ss, eax; nop; nop; hlt", INTERRUPTS, 3)],
    ids=["STI", "MOV SS"],
)
def test_the_window_opens_behind_the_shadow(
    engine: Engine, source: str, flags: int, behind: int
) -> None:
    with handled(engine, source, v32="hlt") as vcpu:
        vcpu.charge(rflags=flags, rax=0x10)
        vcpu.reply.set_flags(ReplyFlag.STEP)
        exit_ = vcpu.expect(Reason.DEBUG)
        assert exit_.flags & ExitFlag.IF
        assert not exit_.flags & (ExitFlag.INTERRUPTIBLE | ExitFlag.NMI_OPEN)
        vcpu.window()
        vcpu.expect(Reason.WINDOW)
        assert vcpu.scalar("rip") == ORIGIN + behind
        vcpu.reply.inject(InjectType.INTERRUPT, VECTOR)
        vcpu.expect(Reason.HLT)
        assert vcpu.exit.injection == Injection.TAKEN
        assert at_handler(vcpu, VECTOR)
        assert returns_to(vcpu) == ORIGIN + behind


@pytest.mark.parametrize("shadow", [1, 2])
def test_a_charged_shadow_lasts_one_instruction(engine: Engine, shadow: int) -> None:
    with handled(engine, "nop; nop; hlt", v32="hlt", v2="hlt") as vcpu:
        vcpu.charge(rflags=INTERRUPTS, interruptibility=shadow)
        vcpu.reply.inject(InjectType.INTERRUPT, VECTOR)
        vcpu.reply.set_flags(ReplyFlag.STEP)
        exit_ = vcpu.expect(Reason.DEBUG)
        assert exit_.injection == Injection.NOT_TAKEN
        assert exit_.ip == ORIGIN + 1
        assert exit_.flags & ExitFlag.INTERRUPTIBLE
        assert vcpu.scalar("interruptibility") == 0


@pytest.mark.parametrize("shadow", [1, 2])
def test_an_nmi_waits_for_the_shadows_end(engine: Engine, shadow: int) -> None:
    with handled(engine, "nop; nop; hlt", v2="hlt") as vcpu:
        vcpu.charge(interruptibility=shadow)
        vcpu.reply.inject(InjectType.NMI, NMI)
        vcpu.expect(Reason.HLT)
        assert vcpu.exit.injection == Injection.TAKEN
        assert at_handler(vcpu, NMI)
        assert returns_to(vcpu) == ORIGIN + 1


# ---- NMIs


def test_nmis_that_wait_are_one(engine: Engine) -> None:
    """It is delivered right behind the IRET, before another instruction."""
    source = "hlt; inc eax; hlt"
    with handled(engine, source, v2="inc ebx; hlt; iretd") as vcpu:
        vcpu.expect(Reason.HLT)
        for _ in range(3):
            vcpu.reply.inject(InjectType.NMI, NMI)
            vcpu.expect(Reason.HLT)
            assert vcpu.exit.injection == Injection.TAKEN
        vcpu.charge(activity=Activity.ACTIVE)
        vcpu.expect(Reason.HLT)
        assert (vcpu.scalar("rbx"), vcpu.scalar("rax")) == (2, 0)
        vcpu.charge(activity=Activity.ACTIVE)
        assert vcpu.expect(Reason.HLT).ip == ORIGIN + 2
        assert (vcpu.scalar("rbx"), vcpu.scalar("rax")) == (2, 1)


def test_a_fault_in_an_nmi_handlers_first_instruction_returns_to_it(engine: Engine) -> None:
    with handled(engine, "hlt", v2="ud2", v6="hlt") as vcpu:
        vcpu.expect(Reason.HLT)
        vcpu.reply.inject(InjectType.NMI, NMI)
        vcpu.expect(Reason.HLT)
        assert at_handler(vcpu, 6)
        assert returns_to(vcpu) == HANDLERS + 16 * NMI


@pytest.mark.parametrize("mode", ["real", "protected", "long"])
def test_the_nmi_window_opens_right_behind_iret(engine: Engine, mode: str) -> None:
    """Pushed by hand: the guest returns from an NMI that the VMM says it is in."""
    source = {
        "real": "pushf; push 0; mov ax, offset 1f; push ax; nop; iret; 1: nop; hlt",
        "protected": "pushfd; push 8; push offset 1f; nop; iretd; 1: nop; hlt",
        "long": "mov eax, ss; mov rbx, rsp; push rax; push rbx; pushfq; push 0x18; "
        "lea rax, [rip + 1f]; push rax; nop; iretq; 1: nop; hlt",
    }[mode]
    with guest(engine, Transport.PAGE, source, mode) as vcpu:
        place(vcpu, GDT + 8, struct.pack("<QQQ", *DESCRIPTORS))
        vcpu.charge(gdtr=Segment(0, 0, 31, GDT), interruptibility=8)
        vcpu.reply.set_flags(ReplyFlag.NMI_WINDOW)
        exit_ = vcpu.expect(Reason.NMI_WINDOW)
        assert exit_.flags & ExitFlag.NMI_OPEN
        ip = vcpu.scalar("rip")
        assert vcpu.memory
        assert vcpu.memory[ip : ip + 2] == b"\x90\xf4"
        assert vcpu.scalar("interruptibility") == 0
        assert vcpu.expect(Reason.HLT).ip == ip + 1


DESCRIPTORS: Final = (0x00CF9A000000FFFF, 0x00CF92000000FFFF, 0x00AF9A000000FFFF)


def test_the_nmi_window_is_behind_the_nmi_that_waits(engine: Engine) -> None:
    with handled(engine, "hlt; hlt", v2="inc ebx; out 0x80, al; iretd") as vcpu:
        vcpu.expect(Reason.HLT)
        vcpu.reply.inject(InjectType.NMI, NMI)
        vcpu.expect(Reason.PORT)
        vcpu.reply.inject(InjectType.NMI, NMI)
        vcpu.reply.set_flags(ReplyFlag.NMI_WINDOW)
        vcpu.expect(Reason.PORT)
        vcpu.expect(Reason.NMI_WINDOW)
        assert vcpu.scalar("rbx") == 2
        assert vcpu.scalar("rip") == ORIGIN + 1


def test_the_nmi_window_may_be_open_already(engine: Engine) -> None:
    with handled(engine, "nop; hlt") as vcpu:
        vcpu.reply.set_flags(ReplyFlag.NMI_WINDOW)
        vcpu.expect(Reason.NMI_WINDOW)
        assert vcpu.scalar("rip") == ORIGIN
        vcpu.expect(Reason.HLT)


# ---- task priority


def test_lowering_the_task_priority_is_told(engine: Engine) -> None:
    """Behind the instruction; raising it, or writing what it is, is not."""
    source = "mov eax, 5; mov cr8, rax; mov cr8, rax; mov eax, 3; mov cr8, rax; nop; hlt"
    with guest(engine, Transport.PAGE, source, "long") as vcpu:
        exit_ = vcpu.expect(Reason.TPR)
        assert (exit_.value, exit_.ip) == (3, ORIGIN + 5 + 4 + 4 + 5 + 4)
        assert vcpu.scalar("cr8") == 3
        vcpu.expect(Reason.HLT)


# ---- exceptions


@pytest.mark.parametrize("mode", ["page", "real"])
def test_an_error_code_is_pushed_where_there_is_one(engine: Engine, mode: str) -> None:
    if mode == "real":
        with guest(engine, Transport.PAGE, "nop; hlt", "real") as vcpu:
            place(vcpu, 4 * PROTECTION, struct.pack("<HH", HANDLERS, 0))
            place(vcpu, HANDLERS, b"\xf4")
            vcpu.reply.inject(InjectType.EXCEPTION, PROTECTION)
            assert vcpu.expect(Reason.HLT).ip == HANDLERS
            assert vcpu.scalar("rsp") == STACK - 6
        return
    with handled(engine, "nop; hlt", v14="hlt") as vcpu:
        vcpu.charge(cr2=0x1234)
        vcpu.reply.inject(InjectType.EXCEPTION, PAGE_FAULT, 6)
        vcpu.expect(Reason.HLT)
        assert vcpu.exit.injection == Injection.TAKEN
        assert at_handler(vcpu, PAGE_FAULT)
        assert (returns_to(vcpu), vcpu.scalar("rsp")) == (6, STACK - 16)


@pytest.mark.parametrize(
    ("vector", "error", "pushed", "entered"),
    [
        (0, None, 0, DOUBLE_FAULT),  # contributory, then #NP of its gate
        (PAGE_FAULT, 0, 0, DOUBLE_FAULT),
        (3, None, 3 * 8 + 3, NOT_PRESENT),  # benign: the gate's number, IDT and EXT
    ],
)
def test_a_fault_during_delivery(
    engine: Engine, vector: int, error: int | None, pushed: int, entered: int
) -> None:
    """SDM vol. 3, table 6-5."""
    with handled(engine, "nop; hlt", v8="hlt", v11="hlt") as vcpu:
        place(vcpu, IDT + 8 * vector, struct.pack("<HHHH", HANDLERS, 8, 0x0E00, 0))
        vcpu.reply.inject(InjectType.EXCEPTION, vector, error)
        vcpu.expect(Reason.HLT)
        assert vcpu.exit.injection == Injection.TAKEN
        assert at_handler(vcpu, entered)
        assert returns_to(vcpu) == pushed


def test_a_fault_during_a_double_fault_is_a_shutdown(engine: Engine) -> None:
    with handled(engine, "nop; hlt", v11="hlt") as vcpu:
        vcpu.reply.inject(InjectType.EXCEPTION, DOUBLE_FAULT, 0)
        vcpu.expect(Reason.SHUTDOWN)
        assert vcpu.exit.injection == Injection.TAKEN


def test_an_event_is_taken_exactly_once(engine: Engine) -> None:
    """Also when the vCPU is paused between the taking and the entering."""
    with handled(engine, "nop; hlt", v32="inc ebx; hlt; iretd") as vcpu:
        vcpu.charge(rflags=INTERRUPTS)
        vcpu.reply.inject(InjectType.INTERRUPT, VECTOR)
        vcpu.pause()
        assert vcpu.expect(Reason.PAUSED).injection == Injection.TAKEN
        assert not vcpu.exit.flags & (ExitFlag.INTERRUPTIBLE | ExitFlag.NMI_OPEN)
        vcpu.reply.inject(InjectType.INTERRUPT, VECTOR)
        assert vcpu.expect(Reason.HLT).injection == Injection.NOT_TAKEN
        vcpu.charge(activity=Activity.ACTIVE)
        assert vcpu.expect(Reason.HLT).ip == ORIGIN + 1
        assert vcpu.scalar("rbx") == 1
