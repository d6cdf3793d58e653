"""Code that changes under the software CPU, which caches it decoded."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from core_service.engine.protocol import Transport
from dataspace.vcpu_page import Reason
from tests.engine.harness import PAGE, Engine, Vcpu
from tests.guests.assemble import assemble

pytestmark = pytest.mark.parametrize("variant", ["soft", "soft-sanitized"], indirect=True)

CODE: Final = 0x1000
WRITER: Final = 0x2000
ACROSS: Final = 0x4FFE  # its immediate lies in the next page
FLAG: Final = 0x6000
STACK: Final = 0x9000

# Calls what lies across two pages until it returns something else than 1.
CALLER: Final = f"""
again:
    mov edx, {ACROSS}
    call edx
    mov dword ptr [{FLAG}], 1
    cmp eax, 1
    je again
    hlt
"""
FUNCTION: Final = "mov eax, 1; ret"  # B8 01 | 00 00 00 C3
IMMEDIATE: Final = ACROSS + 2  # the second byte of the number, in the second page


@contextmanager
def executing(engine: Engine, **sources: str) -> Iterator[tuple[mmap.mmap, list[Vcpu]]]:
    """vCPUs about to execute their sources, by name of their address, and the memory."""
    with engine.ram() as view:
        place(view, ACROSS, FUNCTION)
        created = []
        for index, (name, source) in enumerate(sources.items()):
            at = {"code": CODE, "writer": WRITER}[name]
            place(view, at, source)
            vcpu = Vcpu(engine, Transport.PAGE, index)
            vcpu.begin("protected", at)
            vcpu.charge(rsp=STACK + index * PAGE)
            created.append(vcpu)
        yield view, created
        for vcpu in created:
            vcpu.close()


def place(view: mmap.mmap, at: int, source: str) -> None:
    """Code in guest memory."""
    code = assemble(source, 32, at)
    view[at : at + len(code)] = code


def await_flag(view: mmap.mmap) -> None:
    """Until the guest has set FLAG. The test's time limit ends it otherwise."""
    while view[FLAG] == 0:
        pass


@pytest.mark.parametrize("part", [ACROSS + 1, IMMEDIATE], ids=["first page", "second page"])
def test_an_instruction_across_two_pages_that_another_vcpu_writes(
    engine: Engine, part: int
) -> None:
    with executing(engine, code=CALLER, writer=f"mov byte ptr [{part}], 2; hlt") as (view, vcpus):
        vcpus[0].start()
        await_flag(view)
        vcpus[1].expect(Reason.HLT)
        assert vcpus[0].wait().reason == Reason.HLT
        assert vcpus[0].scalar("rax") == (2 if part == ACROSS + 1 else 0x201)


@pytest.mark.parametrize("part", [ACROSS + 1, IMMEDIATE], ids=["first page", "second page"])
@pytest.mark.parametrize("told", ["reply", "core"])
def test_an_instruction_across_two_pages_that_the_vmm_writes(
    engine: Engine, part: int, told: str
) -> None:
    with executing(engine, code=CALLER, writer="hlt") as (view, vcpus):
        vcpus[0].start()
        await_flag(view)
        view[part] = 2
        if told == "core":
            engine.written(part, 1)
        else:
            vcpus[1].reply.written([(part, 1)])
            vcpus[1].expect(Reason.HLT)
        assert vcpus[0].wait().reason == Reason.HLT
        assert vcpus[0].scalar("rax") == (2 if part == ACROSS + 1 else 0x201)


def test_the_next_instruction_is_written_while_the_one_before_exits(engine: Engine) -> None:
    """They are in one trace, of which the first is being executed."""
    source = "out 0x80, al; mov eax, 1; hlt"
    with executing(engine, code=source) as (view, (vcpu,)):
        vcpu.expect(Reason.PORT)
        view[CODE + 3] = 2
        vcpu.reply.written([(CODE + 3, 1)])
        vcpu.expect(Reason.HLT)
        assert vcpu.scalar("rax") == 2


def test_the_next_instruction_is_written_by_another_while_the_one_before_exits(
    engine: Engine,
) -> None:
    sources = {
        "code": "out 0x80, al; mov eax, 1; hlt",
        "writer": f"mov byte ptr [{CODE + 3}], 2; hlt",
    }
    with executing(engine, **sources) as (_view, vcpus):
        vcpus[0].expect(Reason.PORT)
        vcpus[1].expect(Reason.HLT)
        vcpus[0].expect(Reason.HLT)
        assert vcpus[0].scalar("rax") == 2


def test_the_instruction_that_exits_is_written_itself(engine: Engine) -> None:
    """It ends as it began, and is another the next time."""
    source = "again: in al, 0x80; cmp al, 7; jne again; hlt"
    with executing(engine, code=source) as (view, (vcpu,)):
        assert vcpu.expect(Reason.PORT).address == 0x80
        view[CODE + 1] = 0x81
        vcpu.reply.written([(CODE, 1)])
        vcpu.reply.set_value(6)
        assert vcpu.expect(Reason.PORT).address == 0x81
        vcpu.reply.set_value(7)
        vcpu.expect(Reason.HLT)


@pytest.mark.parametrize("store", ["mov byte ptr [edi], 2", "mov al, 2; stosb", "push 2"])
def test_the_guest_writes_its_own_next_instruction(engine: Engine, store: str) -> None:
    """Through each way that the CPU has to memory; at the same place in its page as the stack's top."""
    source = f"mov edi, offset 1f + 1; lea esp, [edi + 4]; {store}; 1: mov eax, 1; hlt"
    with executing(engine, code=source) as (_view, (vcpu,)):
        vcpu.expect(Reason.HLT)
        assert vcpu.scalar("rax") == 2


def test_a_string_writes_the_code_behind_it(engine: Engine) -> None:
    source = "mov edi, offset 1f; mov ecx, 8; mov al, 0xf4; rep stosb; 1: jmp 1b; nop; nop"
    with executing(engine, code=source) as (_view, (vcpu,)):
        assert vcpu.expect(Reason.HLT).ip == CODE + 14
