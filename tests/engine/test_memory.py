"""Attachments as the engine maps them: rights, holes, splits, and what is left behind."""

from __future__ import annotations

import fcntl
import os
import random
from pathlib import Path

import pytest

from core_service.engine import protocol
from core_service.engine.protocol import Response, Status, Transport, Type
from dataspace.registers import Segment
from dataspace.vcpu_page import ExitFlag, Reason
from tests.engine.harness import ORIGIN, PAGE, RAM, Engine, Vcpu, guest, load, memory

AT = 0x200000


def unmap(engine: Engine, gpa: int, size: int) -> Response:
    return engine.ask(lambda n: protocol.range_packet(Type.UNMAP, n, gpa, size))


def map_(engine: Engine, fd: int, gpa: int, size: int, offset: int = 0) -> Response:
    return engine.ask(lambda n: protocol.range_packet(Type.MAP, n, gpa, size, offset, 3), fd)


def test_fetch_from_nowhere_faults_and_goes_on(engine: Engine, transport: Transport) -> None:
    with guest(engine, transport, f"mov eax, {AT}; jmp eax") as vcpu:
        for _ in range(2):
            exit_ = vcpu.expect(Reason.MEMORY_FAULT)
            assert exit_.flags & ExitFlag.FETCH
            assert exit_.address == AT
        assert vcpu.scalar("rip") == AT
        with engine.ram(AT, b"\xe6\x80\xf4"):
            assert vcpu.expect(Reason.PORT).address == 0x80
            vcpu.expect(Reason.HLT)


def test_fetch_with_no_memory_at_all(engine: Engine, transport: Transport) -> None:
    """At the reset vector; the board's firmware is attached then."""
    vcpu = Vcpu(engine, transport)
    vcpu.expect(Reason.STARTUP)
    vcpu.reply.want(0, 0)
    exit_ = vcpu.expect(Reason.MEMORY_FAULT)
    assert exit_.flags & ExitFlag.FETCH
    assert exit_.address == 0xFFFFFFF0
    firmware = bytes(RAM - 16) + b"\xe6\x80\xf4" + bytes(13)
    with engine.ram(0x100000000 - RAM, firmware):
        vcpu.expect(Reason.PORT)
        vcpu.expect(Reason.HLT)
    vcpu.close()


def test_read_only_memory_gives_its_bytes_and_refuses_writes(
    engine: Engine, transport: Transport
) -> None:
    rom = memory(PAGE, b"ROM!", seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE)
    view = os.open(f"/proc/self/fd/{rom}", os.O_RDONLY)
    engine.map(AT, view, PAGE, writable=False)
    source = f"mov eax, [{AT}]; mov dword ptr [{AT + 8}], 0x55; mov ebx, [{AT + 8}]; hlt"
    with guest(engine, transport, source) as vcpu:
        exit_ = vcpu.expect(Reason.MMIO)
        assert exit_.flags & ExitFlag.WRITE_PROTECTED
        assert (exit_.address, exit_.value) == (AT + 8, 0x55)
        vcpu.expect(Reason.HLT)
        assert vcpu.fetch("rax", "rbx") == {"rax": int.from_bytes(b"ROM!", "little"), "rbx": 0}
    os.close(view)
    os.close(rom)


def test_a_piece_of_a_dataspace(engine: Engine, transport: Transport) -> None:
    fd = memory(4 * PAGE, b"".join(bytes([number]) * PAGE for number in range(4)))
    engine.map(AT, fd, 2 * PAGE, offset=PAGE)
    with guest(engine, transport, f"mov al, [{AT}]; mov bl, [{AT + PAGE}]; hlt") as vcpu:
        vcpu.expect(Reason.HLT)
        assert vcpu.fetch("rax", "rbx") == {"rax": 1, "rbx": 2}
    os.close(fd)


def test_unmap_takes_exactly_its_range(engine: Engine) -> None:
    """Against a dictionary of pages, with the guest as the witness."""
    chance = random.Random(5)
    pages = 12
    fd = memory(pages * PAGE, b"".join(bytes([number + 1]) * PAGE for number in range(pages)))
    with guest(engine, Transport.PAGE, "mov al, [ebx]; hlt; jmp 0x1000") as vcpu:
        expected: dict[int, int] = {}
        for _ in range(30):
            first = chance.randrange(pages)
            count = chance.randrange(1, pages - first + 1)
            if any(page in expected for page in range(first, first + count)):
                engine.unmap(AT + first * PAGE, count * PAGE)
                for page in range(first, first + count):
                    expected.pop(page, None)
            else:
                engine.map(AT + first * PAGE, fd, count * PAGE, offset=first * PAGE)
                expected |= {page: page + 1 for page in range(first, first + count)}
            for page in chance.sample(range(pages), 4):
                assert peek(vcpu, AT + page * PAGE) == expected.get(page)
        engine.unmap(AT, pages * PAGE)
        assert engine.mappings() == 2  # the guest's RAM and the vCPU page
    os.close(fd)


def peek(vcpu: Vcpu, gpa: int) -> int | None:
    """What the guest reads at `gpa`, None where it is an MMIO exit."""
    vcpu.charge(rbx=gpa, rip=ORIGIN)
    if vcpu.run().reason == Reason.MMIO:
        assert vcpu.exit.address == gpa
        vcpu.expect(Reason.HLT)
        return None
    assert vcpu.reason == Reason.HLT
    return vcpu.scalar("rax") & 0xFF


def test_unmap_while_it_runs(engine: Engine, transport: Transport) -> None:
    """The access that finds nothing any more is an exit; the dataspace is out of the engine."""
    fd = memory(RAM)
    engine.map(AT, fd, RAM)
    with guest(engine, transport, f"1: inc dword ptr [{AT}]; jmp 1b") as vcpu:
        vcpu.start()
        before = engine.mappings()
        engine.unmap(AT, RAM)
        assert engine.mappings() == before - 1
        vcpu.wait()
        assert vcpu.reason == Reason.MMIO
        assert vcpu.exit.address == AT
    os.close(fd)


def test_map_and_unmap_beside_a_running_vcpu(engine: Engine, transport: Transport) -> None:
    fd = memory(RAM)
    with guest(engine, transport, "1: inc dword ptr [0x3000]; jmp 1b") as vcpu:
        vcpu.start()
        before = engine.mappings()
        for _ in range(50):
            engine.map(AT, fd, RAM)
            engine.unmap(AT + PAGE, PAGE)
            engine.unmap(AT, RAM)
        assert engine.mappings() == before
        vcpu.pause()
        vcpu.wait()
        assert vcpu.reason == Reason.PAUSED
    os.close(fd)


def test_unmap_under_a_vcpu_in_the_middle_of_a_string(engine: Engine, transport: Transport) -> None:
    """`rep insb` into memory that goes away: the rest of it is MMIO, or lost, but nobody's harm."""
    fd = memory(PAGE)
    engine.map(AT, fd, PAGE)
    source = f"mov edi, {AT}; mov ecx, 8; mov dx, 0x60; cld; rep insb; hlt"
    with guest(engine, transport, source) as vcpu:
        vcpu.expect(Reason.PORT)
        engine.unmap(AT, PAGE)
        os.pwrite(fd, b"untouched", 0)
        vcpu.reply.set_data(b"\xff" * (vcpu.exit.size * vcpu.exit.count))
        for _ in range(32):
            if vcpu.run().reason == Reason.HLT:
                break
            vcpu.reply.set_data(b"\xff" * (vcpu.exit.size * vcpu.exit.count))
        assert vcpu.reason == Reason.HLT
        assert os.pread(fd, 9, 0) == b"untouched"
    os.close(fd)


def test_retired_ranges_are_given_back(engine: Engine) -> None:
    def addresses() -> int:
        status = Path(f"/proc/{engine.pid}/status").read_text()
        return int(status.split("VmSize:")[1].split()[0])

    fd = memory(1024 * PAGE)
    with guest(engine, Transport.PAGE, "in al, 0x60; hlt") as vcpu:
        vcpu.expect(Reason.PORT)  # in the middle of an instruction
        before = addresses()
        for _ in range(20):
            engine.map(AT, fd, 1024 * PAGE)
            engine.unmap(AT, 1024 * PAGE)
        vcpu.expect(Reason.HLT)
        engine.map(AT, fd, 1024 * PAGE)
        engine.unmap(AT, 1024 * PAGE)
        assert addresses() <= before + 1024  # kB
    os.close(fd)


def test_code_that_was_written_from_outside_is_executed(
    engine: Engine, transport: Transport
) -> None:
    """By the note in a reply, and by core's message."""
    with guest(engine, transport, f"out 0x80, al; jmp {ORIGIN}") as vcpu:
        assert vcpu.memory
        assert vcpu.expect(Reason.PORT).address == 0x80
        vcpu.memory[ORIGIN + 1] = 0x81
        vcpu.reply.written([(ORIGIN, 2)])
        assert vcpu.expect(Reason.PORT).address == 0x81
        vcpu.memory[ORIGIN + 1] = 0x82
        engine.written(ORIGIN + 1, 1)
        assert vcpu.expect(Reason.PORT).address == 0x82
        vcpu.memory[ORIGIN + 1] = 0x83
        vcpu.reply.written([(0, 1)] * 9)  # more than the page has room for: everything
        assert vcpu.expect(Reason.PORT).address == 0x83


@pytest.mark.parametrize(
    ("gpa", "size", "offset", "complaint"),
    [
        (AT + 1, PAGE, 0, "pages"),
        (AT, PAGE + 1, 0, "pages"),
        (AT, 0, 0, "empty"),
        (AT, PAGE, 1, "offset"),
        (AT, 2 * PAGE, 0, "0x1000 bytes"),
        (AT, PAGE, 2**64 - PAGE, "0x1000 bytes"),
        (2**63, PAGE, 0, "physical bits"),
        (2**64 - PAGE, PAGE, 0, "physical bits"),
    ],
)
def test_a_range_that_cannot_be_mapped(
    engine: Engine, gpa: int, size: int, offset: int, complaint: str
) -> None:
    fd = memory(PAGE)
    response = map_(engine, fd, gpa, size, offset)
    assert response.status == Status.BAD_MESSAGE
    assert complaint in response.text
    assert engine.fds() == 0
    os.close(fd)


def test_overlap_is_refused_and_named(engine: Engine) -> None:
    fd = memory(2 * PAGE)
    engine.map(AT, fd, 2 * PAGE)
    response = map_(engine, fd, AT + PAGE, PAGE)
    assert response.status == Status.BAD_MESSAGE
    assert "[0x201000, 0x202000): overlaps [0x200000, 0x202000)" in response.text
    os.close(fd)


def test_a_dataspace_that_can_shrink_is_refused(engine: Engine) -> None:
    fd = memory(PAGE, seals=fcntl.F_SEAL_GROW)
    response = map_(engine, fd, AT, PAGE)
    assert response.status == Status.BAD_MESSAGE
    assert "shrinking" in response.text
    os.close(fd)


def test_write_access_needs_a_writable_description(engine: Engine) -> None:
    fd = memory(PAGE)
    view = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    response = map_(engine, view, AT, PAGE)
    assert response.status == Status.KERNEL
    assert "Permission denied" in response.text
    os.close(view)
    os.close(fd)


def test_unmap_of_nothing_is_success(engine: Engine) -> None:
    assert unmap(engine, AT, PAGE).status == Status.OK


def test_the_stack_may_be_real_mode_high(engine: Engine, transport: Transport) -> None:
    """Segments with their own base, as boot code sets them."""
    with engine.ram() as view:
        load(view, "mov al, [0x10]; hlt", "real")
        view[0x2010] = 0x5C
        vcpu = Vcpu(engine, transport)
        vcpu.begin("real")
        vcpu.charge(ds=Segment(0x200, 0x93, 0xFFFF, 0x2000))
        vcpu.expect(Reason.HLT)
        assert vcpu.scalar("rax") & 0xFF == 0x5C
        vcpu.close()
