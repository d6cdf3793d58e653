"""The software CPU under the VMM's debugger: steps, breakpoints on code, breakpoints on data."""

from __future__ import annotations

import os
import struct
from typing import Final

import pytest

from core_service.engine.protocol import Transport
from dataspace.registers import Segment
from dataspace.vcpu_page import InjectType, Reason, ReplyFlag
from tests.engine.harness import ORIGIN, PAGE, STACK, Engine, Vcpu, guest, memory
from tests.guests.assemble import assemble

pytestmark = pytest.mark.parametrize("variant", ["soft", "soft-sanitized"], indirect=True)

STEP: Final = 0x4000  # DR6.BS
DATA: Final = 0x2000
HANDLER: Final = 0x3000
IDT: Final = 0x4000
GDT: Final = 0x5000
PAGE_TWO: Final = 0x6000
HOLE: Final = 0x100000

EXECUTE, WRITE, ACCESS = 0, 1, 3
LENGTHS: Final = {1: 0, 2: 1, 8: 2, 4: 3}


def control(*breakpoints: tuple[int, int]) -> int:
    """DR7 for (kind, bytes) each: SDM vol. 3, 17.2.4."""
    return sum(
        1 << 2 * n | kind << 16 + 4 * n | LENGTHS[size] << 18 + 4 * n
        for n, (kind, size) in enumerate(breakpoints)
    )


def break_at(vcpu: Vcpu, *breakpoints: tuple[int, int, int]) -> None:
    """With the next run: (address, kind, bytes) each."""
    vcpu.reply.set_breakpoints(
        [address for address, _, _ in breakpoints],
        control(*[(kind, size) for _, kind, size in breakpoints]),
    )
    vcpu.reply.set_flags(ReplyFlag.BREAKPOINTS)


def break_on(vcpu: Vcpu, *addresses: int) -> None:
    """With the next run: execution of these."""
    break_at(vcpu, *[(address, EXECUTE, 1) for address in addresses])


def step(vcpu: Vcpu) -> int:
    """One instruction, and where it stops."""
    vcpu.reply.set_flags(ReplyFlag.STEP)
    exit_ = vcpu.expect(Reason.DEBUG)
    assert exit_.detail == STEP
    return exit_.ip


def hit(vcpu: Vcpu) -> tuple[int, int]:
    """Run until a breakpoint: where, and which."""
    exit_ = vcpu.expect(Reason.DEBUG)
    return exit_.ip, exit_.detail


def place(vcpu: Vcpu, at: int, content: bytes) -> None:
    """Guest memory, before anything was executed."""
    assert vcpu.memory
    vcpu.memory[at : at + len(content)] = content


def catch(vcpu: Vcpu, vector: int, handler: str = "hlt") -> None:
    """A handler for an exception in flat protected mode, and a GDT with code and data."""
    place(vcpu, HANDLER, assemble(handler, 32, HANDLER))
    place(vcpu, IDT + vector * 8, struct.pack("<HHHH", HANDLER, 8, 0x8E00, 0))
    place(vcpu, GDT + 8, struct.pack("<QQ", 0x00CF9A000000FFFF, 0x00CF92000000FFFF))
    vcpu.charge(idtr=Segment(0, 0, 0xFF, IDT), gdtr=Segment(0, 0, 23, GDT))


# ---- steps


@pytest.mark.parametrize("mode", ["real", "protected", "long", "user"])
def test_steps_are_single_instructions(engine: Engine, mode: str) -> None:
    source = "inc eax; nop; inc eax; jmp 1f; nop; 1: inc eax; push 1; hlt"
    with guest(engine, Transport.PAGE, source, mode) as vcpu:
        lengths = {"real": (2, 1, 2, 3, 2, 2), "protected": (1, 1, 1, 3, 1, 2)}
        at = ORIGIN
        for length in lengths.get(mode, (2, 1, 2, 3, 2, 2)):
            at += length
            assert step(vcpu) == at
            assert vcpu.exit.address == at
        assert vcpu.scalar("rax") == 3


def test_a_step_is_linear(engine: Engine) -> None:
    """In real mode: base and ip."""
    with guest(engine, Transport.PAGE, "nop; hlt", "real") as vcpu:
        vcpu.charge(cs=Segment(ORIGIN >> 4, 0x9B, 0xFFFF, ORIGIN), rip=0)
        assert step(vcpu) == 1
        assert vcpu.exit.address == ORIGIN + 1


def test_the_shadow_does_not_hide_a_step(engine: Engine) -> None:
    """TF would trap neither behind MOV SS nor behind STI's successor alone."""
    with guest(engine, Transport.PAGE, "sti; mov ss, eax; nop; hlt") as vcpu:
        catch(vcpu, 6)
        vcpu.charge(rax=0x10)
        assert [step(vcpu) - ORIGIN for _ in range(3)] == [1, 3, 4]


def test_a_repeated_string_is_stepped_by_iterations(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "rep stosb; hlt") as vcpu:
        vcpu.charge(rcx=3, rdi=DATA)
        left = []
        while step(vcpu) == ORIGIN:
            left.append(vcpu.scalar("rcx"))
        assert left == [2, 1]
        assert vcpu.exit.ip == ORIGIN + 2


def test_a_step_ends_behind_the_exits_of_its_instruction(engine: Engine) -> None:
    source = f"mov eax, [{HOLE}]; out 0x80, al; hlt"
    with guest(engine, Transport.PAGE, source) as vcpu:
        vcpu.reply.set_flags(ReplyFlag.STEP)
        assert vcpu.expect(Reason.MMIO).address == HOLE
        vcpu.reply.set_data(b"\x44\0\0\0")
        assert hit(vcpu) == (ORIGIN + 5, STEP)
        assert vcpu.expect(Reason.PORT).value == 0x44
        vcpu.reply.set_flags(ReplyFlag.STEP)  # what is left of it
        assert hit(vcpu) == (ORIGIN + 7, STEP)
        vcpu.expect(Reason.HLT)


def test_a_fault_is_a_step(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "ud2; hlt") as vcpu:
        catch(vcpu, 6, "nop; hlt")
        assert step(vcpu) == HANDLER
        assert step(vcpu) == HANDLER + 1


def test_an_injected_event_enters_before_the_step(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "nop; hlt") as vcpu:
        catch(vcpu, 6, "nop; hlt")
        vcpu.reply.inject(InjectType.EXCEPTION, 6)
        assert step(vcpu) == HANDLER + 1


def test_hlt_ends_a_step_that_is_then_forgotten(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "hlt; nop; nop; hlt") as vcpu:
        vcpu.reply.set_flags(ReplyFlag.STEP)
        vcpu.expect(Reason.HLT)
        vcpu.charge(activity=0)
        assert vcpu.expect(Reason.HLT).ip == ORIGIN + 3


def test_the_guest_does_not_see_that_it_is_stepped(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "pushfd; pop eax; mov ebx, dr6; hlt") as vcpu:
        for _ in range(3):
            step(vcpu)
        assert vcpu.scalar("rax") == 2
        assert vcpu.scalar("rbx") == 0xFFFF0FF0


def test_the_guest_steps_itself_while_it_is_stepped(engine: Engine) -> None:
    """TF is the guest's: its #DB comes behind the next instruction but one, and counts as a step."""
    source = "pushfd; or dword ptr [esp], 0x100; popfd; nop; nop; hlt"
    with guest(engine, Transport.PAGE, source) as vcpu:
        catch(vcpu, 1, "mov ebx, [esp]; hlt")
        ips = [step(vcpu) for _ in range(6)]
        nop = ORIGIN + 9
        assert ips[:4] == [ORIGIN + 1, ORIGIN + 8, nop, nop + 1]
        assert ips[4:] == [HANDLER, HANDLER + 3]
        assert vcpu.scalar("rbx") == nop + 1


# ---- breakpoints on code


def test_a_breakpoint_stops_before_its_instruction_and_is_stepped_over(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "again: inc eax; inc ebx; jmp again") as vcpu:
        break_on(vcpu, ORIGIN + 1)
        for turn in range(1, 4):
            assert hit(vcpu) == (ORIGIN + 1, 1)
            assert vcpu.exit.address == ORIGIN + 1
            assert (vcpu.scalar("rax"), vcpu.scalar("rbx")) == (turn, turn - 1)


def test_a_breakpoint_where_the_vcpu_stands_is_stepped_over(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "again: inc eax; jmp again") as vcpu:
        break_on(vcpu, ORIGIN)
        assert hit(vcpu) == (ORIGIN, 1)
        assert vcpu.scalar("rax") == 1


def test_every_breakpoint_tells_its_number(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "nop; nop; nop; nop; nop; hlt") as vcpu:
        break_on(vcpu, ORIGIN + 4, ORIGIN + 3, ORIGIN + 2, ORIGIN + 3)
        assert [hit(vcpu) for _ in range(3)] == [
            (ORIGIN + 2, 4),
            (ORIGIN + 3, 2 | 8),
            (ORIGIN + 4, 1),
        ]
        break_on(vcpu)
        vcpu.expect(Reason.HLT)


def test_a_step_onto_a_breakpoint_tells_both(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "nop; nop; hlt") as vcpu:
        break_on(vcpu, ORIGIN + 1)
        vcpu.reply.set_flags(ReplyFlag.STEP | ReplyFlag.BREAKPOINTS)
        assert hit(vcpu) == (ORIGIN + 1, STEP | 1)
        assert step(vcpu) == ORIGIN + 2


@pytest.mark.parametrize("entry", ["jmp", "fall", "cross", "shadow"])
def test_a_breakpoint_on_the_first_instruction_of_a_page(engine: Engine, entry: str) -> None:
    """Where no boundary before it is looked at: reached by a jump, from the page before it, behind an
    instruction across both pages, and behind MOV SS."""
    target = PAGE_TWO + (1 if entry == "cross" else 0)
    before = {
        "jmp": (PAGE_TWO - 0x100, f"jmp {PAGE_TWO}"),
        "fall": (PAGE_TWO - 0x10, "nop\n" * 16),
        "cross": (PAGE_TWO - 0x10, "nop\n" * 15 + ".byte 0x89, 0xc0"),
        "shadow": (PAGE_TWO - 0x12, "nop\n" * 16 + "mov ss, eax"),
    }
    start, source = before[entry]
    with guest(engine, Transport.PAGE, f"mov ecx, 3; again: mov edx, {start}; jmp edx") as vcpu:
        catch(vcpu, 6)
        vcpu.charge(rax=0x10)
        place(vcpu, start, assemble(source, 32, start))
        back = f"inc ebx; loop 1f; hlt; 1: jmp {ORIGIN + 5}"
        place(vcpu, target, assemble(back, 32, target))
        break_on(vcpu, target)
        for turn in range(3):
            assert hit(vcpu) == (target, 1)
            assert vcpu.scalar("rbx") == turn
        vcpu.expect(Reason.HLT)


def test_a_breakpoint_on_a_handler(engine: Engine) -> None:
    """Reached by a fault, and by events that are injected."""
    with guest(engine, Transport.PAGE, "ud2; hlt") as vcpu:
        catch(vcpu, 6)
        catch(vcpu, 2)
        break_on(vcpu, HANDLER)
        assert hit(vcpu) == (HANDLER, 1)
        for kind, vector in ((InjectType.EXCEPTION, 6), (InjectType.NMI, 2)):
            vcpu.charge(rip=ORIGIN)
            vcpu.reply.inject(kind, vector)
            assert hit(vcpu) == (HANDLER, 1)
            assert vcpu.scalar("rsp") < STACK
        vcpu.expect(Reason.HLT)


def test_a_breakpoint_on_a_repeated_string_fires_once(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "nop; rep stosb; hlt") as vcpu:
        vcpu.charge(rcx=1000, rdi=DATA)
        break_on(vcpu, ORIGIN + 1)
        assert hit(vcpu) == (ORIGIN + 1, 1)
        vcpu.expect(Reason.HLT)


def test_the_resume_flag_is_for_one_instruction(engine: Engine) -> None:
    """SDM vol. 3, 17.3.1.1: the CPU clears RF behind it."""
    with guest(engine, Transport.PAGE, "nop; nop; nop; nop; hlt") as vcpu:
        break_on(vcpu, ORIGIN + 3)
        vcpu.reply.set_flags(ReplyFlag.BREAKPOINTS | ReplyFlag.STEP)
        assert hit(vcpu) == (ORIGIN + 1, STEP)
        vcpu.charge(rflags=0x10002)
        assert hit(vcpu) == (ORIGIN + 3, 1)
        assert vcpu.scalar("rflags") == 2


def test_no_breakpoint_is_lost_to_kicks(engine: Engine) -> None:
    """Memory comes and goes while the guest runs into its breakpoint, again and again."""
    turns = 50
    source = f"again: mov ecx, 20000; 1: loop 1b; jmp {PAGE_TWO}"
    fd = memory(PAGE)
    with guest(engine, Transport.PAGE, source) as vcpu:
        place(vcpu, PAGE_TWO, assemble(f"inc ebx; jmp {ORIGIN}", 32, PAGE_TWO))
        break_on(vcpu, PAGE_TWO)
        for turn in range(turns):
            vcpu.start()
            for _ in range(5):
                engine.map(HOLE, fd, PAGE)
                engine.unmap(HOLE, PAGE)
            assert vcpu.wait().reason == Reason.DEBUG
            assert vcpu.scalar("rbx") == turn
    os.close(fd)


def test_the_guests_own_breakpoints_fire_when_there_are_none_of_ours(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "again: nop; nop; nop; jmp again") as vcpu:
        catch(vcpu, 1)
        vcpu.charge(dr0=ORIGIN + 1, dr7=0x401)
        break_on(vcpu, ORIGIN + 2)
        for _ in range(3):
            assert hit(vcpu) == (ORIGIN + 2, 1)
        assert vcpu.scalar("dr6") == 0xFFFF0FF0
        assert vcpu.scalar("dr7") == 0x401
        break_on(vcpu)
        assert vcpu.expect(Reason.HLT).ip == HANDLER
        assert vcpu.scalar("dr6") == 0xFFFF0FF1


# ---- breakpoints on data

ACCESSES: Final = {
    "mov [edi], al": (WRITE, ACCESS),
    "mov al, [edi]": (ACCESS,),
    "mov eax, [edi - 3]": (ACCESS,),
    "mov [edi - 3], eax": (WRITE, ACCESS),
    "mov [edi + 1], al": (),
    "mov [edi - 1], al": (),
    "inc byte ptr [edi]": (WRITE, ACCESS),
    "lock xadd [edi], eax": (WRITE, ACCESS),
    "cmp byte ptr [edi], 1": (ACCESS,),
    "lea esp, [edi + 4]; push eax": (WRITE, ACCESS),
    "mov esp, edi; pop eax": (ACCESS,),
    "lea esp, [edi + 4]; call 1f; 1:": (WRITE, ACCESS),
    "mov esi, edi; lodsb": (ACCESS,),
    "stosb": (WRITE, ACCESS),
    "mov ecx, 100; sub edi, 99; rep stosb": (WRITE, ACCESS),
    "lea esi, [edi - 50]; lea edi, [edi - 200]; mov ecx, 100; rep movsb": (ACCESS,),
    "movaps [edi - 0x0], xmm0": (WRITE, ACCESS),
    "movups xmm0, [edi - 15]": (ACCESS,),
    "vmovdqu [edi - 31], ymm0": (WRITE, ACCESS),
    "fxsave [edi - 0x10]": (WRITE, ACCESS),
    "fldcw [edi]": (ACCESS,),
    "cmpxchg8b [edi]": (WRITE, ACCESS),
    "sgdt [edi - 2]": (WRITE, ACCESS),
}


@pytest.mark.parametrize("instruction", ACCESSES)
@pytest.mark.parametrize("kind", [WRITE, ACCESS])
def test_a_breakpoint_on_data(engine: Engine, instruction: str, kind: int) -> None:
    """It stops behind the instruction that accesses the byte, whichever instruction, and no other. The
    page was accessed before, so that the CPU knows where it is."""
    source = f"mov al, [edi]; mov [edi], al; mov edx, edx; {instruction}; nop; hlt"
    with guest(engine, Transport.PAGE, source) as vcpu:
        vcpu.charge(rdi=DATA + 0x200, cr0=0x13, cr4=0x40620, xcr0=7)
        break_on(vcpu, ORIGIN + 4)
        assert hit(vcpu) == (ORIGIN + 4, 1)
        break_at(vcpu, (0, EXECUTE, 1), (0, EXECUTE, 1), (DATA + 0x200, kind, 1))
        if kind in ACCESSES[instruction]:
            assert hit(vcpu)[1] == 4
            vcpu.expect(Reason.HLT)
        else:
            vcpu.expect(Reason.HLT)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_breakpoint_covers_its_bytes(engine: Engine, size: int) -> None:
    source = "mov [edi - 1], al; mov [edi + ecx], al; mov [edi], al; mov [edi + ecx - 1], al; hlt"
    with guest(engine, Transport.PAGE, source) as vcpu:
        vcpu.charge(rdi=DATA + 8, rcx=size)
        break_at(vcpu, (DATA + 8, WRITE, size))
        assert hit(vcpu) == (ORIGIN + 8, 1)
        assert hit(vcpu) == (ORIGIN + 12, 1)
        vcpu.expect(Reason.HLT)


def test_an_access_across_pages_meets_a_breakpoint_in_the_second(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "mov [edi], eax; hlt") as vcpu:
        vcpu.charge(rdi=DATA + PAGE - 3)
        break_at(vcpu, (DATA + PAGE, WRITE, 1))
        assert hit(vcpu) == (ORIGIN + 2, 1)


@pytest.mark.parametrize("kind", [InjectType.EXCEPTION, InjectType.NMI])
def test_the_delivery_of_an_event_meets_a_breakpoint(engine: Engine, kind: InjectType) -> None:
    """Before its handler's first instruction."""
    vector = 2 if kind == InjectType.NMI else 6
    with guest(engine, Transport.PAGE, "nop; hlt") as vcpu:
        catch(vcpu, vector, "nop; hlt")
        break_at(vcpu, (STACK - 12, WRITE, 4))
        vcpu.reply.inject(kind, vector)
        assert hit(vcpu) == (HANDLER, 1)
        assert vcpu.scalar("rsp") == STACK - 12


def test_a_device_can_be_watched(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, f"mov [{HOLE}], al; hlt") as vcpu:
        break_at(vcpu, (HOLE, WRITE, 1))
        vcpu.expect(Reason.MMIO)
        assert hit(vcpu) == (ORIGIN + 5, 1)


def test_breakpoints_of_both_kinds_tell_apart_reading_and_writing(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "mov eax, [edi]; mov [edi], eax; hlt") as vcpu:
        vcpu.charge(rdi=DATA)
        break_at(vcpu, (DATA, WRITE, 4), (DATA, ACCESS, 4))
        assert hit(vcpu) == (ORIGIN + 2, 2)
        assert hit(vcpu) == (ORIGIN + 4, 1 | 2)
        vcpu.expect(Reason.HLT)
