"""Several software vCPUs of one VM: they take turns, and see each other's code and time."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from core_service.engine.protocol import Transport
from dataspace.vcpu_page import Activity, Reason
from tests.engine.harness import Engine, Vcpu
from tests.guests.assemble import assemble

pytestmark = pytest.mark.parametrize("variant", ["soft"], indirect=True)

FLAG = 0x5000
FUNCTION = 0x6000
PLACES = (0x1000, 0x2000, 0x3000, 0x4000)
STACKS = (0x7000, 0x8000, 0x9000, 0xA000)

CALL_UNTIL_2 = f"""
    again:
        mov eax, {FUNCTION}
        call eax
        mov dword ptr [{FLAG}], 1
        cmp eax, 2
        jne again
        hlt
    """


@contextmanager
def vcpus(engine: Engine, *sources: str) -> Iterator[tuple[mmap.mmap, list[Vcpu]]]:
    """vCPUs in flat protected mode, each about to execute its source, and their memory."""
    with engine.ram() as view, ExitStack() as stack:
        created = []
        for index, source in enumerate(sources):
            code = assemble(source, 32, PLACES[index])
            view[PLACES[index] : PLACES[index] + len(code)] = code
            vcpu = Vcpu(engine, Transport.PAGE, index)
            stack.callback(vcpu.close)
            vcpu.begin("protected", PLACES[index])
            vcpu.charge(rsp=STACKS[index])
            created.append(vcpu)
        yield view, created


def place_function(view: mmap.mmap, result: int) -> None:
    """A function at FUNCTION that returns `result`."""
    code = assemble(f"mov eax, {result}; ret", 32, FUNCTION)
    view[FUNCTION : FUNCTION + len(code)] = code


def await_flag(view: mmap.mmap) -> None:
    """Until the guest has set FLAG. The test's time limit ends it otherwise."""
    while view[FLAG] == 0:
        pass


def test_locked_increments_are_exact(engine: Engine) -> None:
    count = 100_000
    source = f"mov ecx, {count}; again: lock inc dword ptr [{FLAG}]; dec ecx; jnz again; hlt"
    with vcpus(engine, *[source] * 4) as (view, created):
        for vcpu in created:
            vcpu.start()
        for vcpu in created:
            assert vcpu.wait().reason == Reason.HLT
        assert int.from_bytes(view[FLAG : FLAG + 4], "little") == 4 * count


def test_pause_instruction_gives_up_the_turn(engine: Engine) -> None:
    """Two that wait for each other spin a few times a round, once both are there, which they know by
    their second round: a whole turn would be some 25000 times."""
    rounds, few = 200, 50

    def player(mine: int, theirs: int) -> str:
        return f"""
            mov ecx, {rounds}
        wait:
            inc esi
            pause
            cmp dword ptr [{FLAG}], {mine}
            jne wait
            cmp ecx, {rounds - 1}
            jb play
            xor esi, esi
        play:
            mov dword ptr [{FLAG}], {theirs}
            dec ecx
            jnz wait
            hlt
        """

    with vcpus(engine, player(0, 1), player(1, 0)) as (_view, created):
        for vcpu in created:
            vcpu.start()
        for vcpu in created:
            assert vcpu.wait().reason == Reason.HLT
            assert vcpu.scalar("rsi") < rounds * few


def test_one_sees_code_that_another_writes(engine: Engine) -> None:
    writer = f"mov byte ptr [{FUNCTION + 1}], 2; hlt"
    with vcpus(engine, CALL_UNTIL_2, writer) as (view, created):
        place_function(view, 1)
        created[0].start()
        await_flag(view)
        created[1].expect(Reason.HLT)
        assert created[0].wait().reason == Reason.HLT


def test_one_sees_code_that_another_pushes(engine: Engine) -> None:
    """The CPU writes to its stack's page without a look at decoded code, once it knows the page; then
    another decodes from there."""
    writer = f"push ebx; out 0x80, al; mov esp, {FUNCTION + 4}; push eax; hlt"
    with vcpus(engine, CALL_UNTIL_2, writer) as (view, created):
        place_function(view, 1)
        created[1].charge(rsp=FUNCTION + 0x20, rax=0x000002B8)  # mov eax, 2
        created[1].expect(Reason.PORT)
        created[0].start()
        await_flag(view)
        created[1].expect(Reason.HLT)
        assert created[0].wait().reason == Reason.HLT


def test_one_sees_code_that_we_write(engine: Engine) -> None:
    """By the channel, while it runs; and by the reply of another vCPU."""
    with vcpus(engine, CALL_UNTIL_2, "hlt") as (view, created):
        place_function(view, 1)
        created[0].start()
        await_flag(view)
        place_function(view, 3)
        engine.written(FUNCTION, 8)
        place_function(view, 2)
        created[1].reply.written([(FUNCTION, 8)])
        created[1].expect(Reason.HLT)
        assert created[0].wait().reason == Reason.HLT


def test_time_is_the_same_and_monotonic(engine: Engine) -> None:
    source = "rdtsc; hlt"
    with vcpus(engine, *[source] * 3) as (_view, created):
        times = []
        for vcpu in created:
            vcpu.want("rax", "rdx", "tsc_offset")
            registers = vcpu.expect(Reason.HLT).registers()
            assert registers["tsc_offset"] == 0
            rax, rdx = registers["rax"], registers["rdx"]
            assert isinstance(rax, int)
            assert isinstance(rdx, int)
            times.append(rdx << 32 | rax)
        assert 0 < times[0] < times[1] < times[2] < times[0] + 10**10


def test_an_endless_loop_leaves_others_their_turns(engine: Engine) -> None:
    with vcpus(engine, "again: jmp again", f"mov dword ptr [{FLAG}], 1; hlt") as (view, created):
        created[0].start()
        created[1].expect(Reason.HLT)
        assert view[FLAG] == 1
        created[0].pause()
        assert created[0].wait().reason == Reason.PAUSED


def test_every_one_of_many_busy_vcpus_can_be_paused(engine: Engine) -> None:
    with vcpus(engine, *["again: jmp again"] * 4) as (_view, created):
        for vcpu in created:
            vcpu.start()
        for vcpu in created:
            vcpu.pause()
            assert vcpu.wait().reason == Reason.PAUSED


@pytest.mark.parametrize("count", [65_000, 70_000, 75_000])
def test_hlt_is_seen_though_the_turn_is_over(engine: Engine, count: int) -> None:
    """The turn has lasted too long, another waits for it, and the vCPU is paused while the other has it.
    Slow instructions keep both from looking up before they must."""
    slow = "fldpi; 2: fsin; fldpi; fstp st(1); dec ecx; jnz 2b"
    halting = f"""
        mov ecx, {count}
    1:  dec ecx
        jnz 1b
        mov byte ptr [{FLAG}], 1
        mov ecx, 1000
        {slow}
        mov byte ptr [{FLAG + 1}], 1
        hlt
    """
    busy = f"in al, 0x60; 1: mov ecx, 1000; {slow}; jmp 1b"
    with vcpus(engine, halting, busy) as (view, (first, second)):
        second.expect(Reason.PORT)
        first.want("activity")
        first.start()
        await_flag(view)
        second.start()
        while not view[FLAG + 1]:
            pass
        first.pause()
        assert first.wait().register("activity") == Activity.HALTED


def test_memory_is_detached_under_running_vcpus(engine: Engine) -> None:
    """Host addresses in any vCPU's TLB are forgotten: the store becomes an exit."""
    hole = 0x100000
    source = f"again: mov dword ptr [{hole}], eax; mov dword ptr [{FLAG}], 1; jmp again"
    with vcpus(engine, source, source) as (view, created), engine.ram(hole):
        for vcpu in created:
            vcpu.start()
        await_flag(view)
        engine.unmap(hole, 0x10000)
        for vcpu in created:
            assert vcpu.wait().reason == Reason.MMIO
            assert vcpu.exit.address == hole
