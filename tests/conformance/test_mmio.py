"""Accesses to where nothing is attached, and writes to where only reading is allowed."""

from __future__ import annotations

import pytest

from dataspace.vcpu_page import ExitFlag, Reason
from tests.conformance.claims import needs, proves
from tests.conformance.machine import DATA, HOLE, ORIGIN, PAGE, Machine, expect
from vmm_client.exits import Exit
from vmm_client.vcpu import Vcpu

pytestmark = proves("exit:MMIO")

PATTERN = bytes(range(0x11, 0x99, 0x11))


def accesses(vcpu: Vcpu, device: bytearray | None = None) -> list[tuple[bool, int, bytes]]:
    """Serve MMIO until the guest halts, by `device` at HOLE: what was read, where, and what bytes."""
    seen = []
    exit_ = vcpu.turn()
    while exit_ and exit_.reason is Reason.MMIO:
        assert exit_.mid_instruction
        seen += parts(exit_, device)
        exit_ = vcpu.turn()
    assert exit_
    assert exit_.reason is Reason.HLT, exit_
    return seen


def parts(exit_: Exit, device: bytearray | None) -> list[tuple[bool, int, bytes]]:
    """The accesses that an exit joins, each with its bytes."""
    assert exit_.size in {1, 2, 4, 8}
    places = [exit_.address + number * exit_.size for number in range(exit_.count)]
    if exit_.is_read:
        assert device is not None
        data = b"".join(bytes(device[at - HOLE : at - HOLE + exit_.size]) for at in places)
        exit_.reply_data(data)
    else:
        data = exit_.data
    cut = [data[at : at + exit_.size] for at in range(0, len(data), exit_.size)]
    return [(exit_.is_read, place, piece) for place, piece in zip(places, cut, strict=True)]


def by_address(seen: list[tuple[bool, int, bytes]]) -> dict[int, int]:
    """Each byte of these accesses; none may come twice."""
    pairs = [pair for _, at, data in seen for pair in enumerate(data, at)]
    assert len(dict(pairs)) == len(pairs), "a byte twice"
    return dict(pairs)


@pytest.mark.parametrize(("size", "register"), [(1, "al"), (2, "ax"), (4, "eax")])
def test_write(machine: Machine, size: int, register: str) -> None:
    vcpu = machine.guest(f"mov eax, 0x44332211; mov [{HOLE + 8}], {register}; hlt")
    exit_ = expect(vcpu, Reason.MMIO)
    assert (exit_.address, exit_.size, exit_.count, exit_.is_read) == (HOLE + 8, size, 1, False)
    assert exit_.data == PATTERN[:size]
    assert not exit_.flags & (ExitFlag.WRITE_PROTECTED | ExitFlag.FETCH)
    assert exit_.ip in {None, ORIGIN + 5}
    expect(vcpu, Reason.HLT)


def test_write_of_8_bytes(machine: Machine) -> None:
    vcpu = machine.guest(f"mov rax, 0x8877665544332211; mov [{HOLE + 8}], rax; hlt", "long")
    exit_ = expect(vcpu, Reason.MMIO)
    assert (exit_.address, exit_.size, exit_.count, exit_.data) == (HOLE + 8, 8, 1, PATTERN)
    expect(vcpu, Reason.HLT)


@pytest.mark.parametrize(
    ("register", "size", "result"),
    [("al", 1, 0xFFFFFF88), ("ax", 2, 0xFFFF7788), ("eax", 4, 0x55667788)],
)
def test_read(machine: Machine, register: str, size: int, result: int) -> None:
    vcpu = machine.guest(f"mov eax, -1; mov {register}, [{HOLE}]; mov [{DATA}], eax; hlt")
    exit_ = expect(vcpu, Reason.MMIO)
    assert (exit_.address, exit_.size, exit_.count, exit_.is_read) == (HOLE, size, 1, True)
    exit_.reply(0x1122334455667788)
    expect(vcpu, Reason.HLT)
    assert machine.word(DATA) == result


@pytest.mark.parametrize(
    ("register", "size", "result"),
    [("ax", 2, 0xFFFFFFFFFFFF7788), ("eax", 4, 0x55667788), ("rax", 8, 0x1122334455667788)],
)
def test_read_in_long_mode(machine: Machine, register: str, size: int, result: int) -> None:
    source = f"mov rax, -1; mov {register}, [{HOLE}]; mov [{DATA}], rax; hlt"
    vcpu = machine.guest(source, "long")
    exit_ = expect(vcpu, Reason.MMIO)
    assert (exit_.address, exit_.size, exit_.is_read) == (HOLE, size, True)
    exit_.reply(0x1122334455667788)
    expect(vcpu, Reason.HLT)
    assert machine.word(DATA, 8) == result


def test_in_real_mode(machine: Machine) -> None:
    """The hole of a PC: 0xa0000."""
    source = "mov ax, 0xa000; mov ds, ax; mov word ptr [0x10], 0x1234; mov al, [0x20]; hlt"
    vcpu = machine.guest(source, "real")
    exit_ = expect(vcpu, Reason.MMIO)
    assert (exit_.address, exit_.size, exit_.value) == (0xA0010, 2, 0x1234)
    exit_ = expect(vcpu, Reason.MMIO)
    assert (exit_.address, exit_.size, exit_.is_read) == (0xA0020, 1, True)
    expect(vcpu, Reason.HLT)


def test_read_that_nobody_answers_floats_high(machine: Machine) -> None:
    vcpu = machine.guest(f"xor eax, eax; mov ax, [{HOLE}]; mov [{DATA}], eax; hlt")
    expect(vcpu, Reason.MMIO)
    expect(vcpu, Reason.HLT)
    assert machine.word(DATA) == 0xFFFF


def test_read_and_modify_and_write(machine: Machine) -> None:
    vcpu = machine.guest(f"add dword ptr [{HOLE}], 5; hlt")
    exit_ = expect(vcpu, Reason.MMIO)
    assert exit_.is_read
    exit_.reply(37)
    exit_ = expect(vcpu, Reason.MMIO)
    assert (exit_.address, exit_.size, exit_.is_read, exit_.value) == (HOLE, 4, False, 42)
    expect(vcpu, Reason.HLT)


def test_exchange(machine: Machine) -> None:
    vcpu = machine.guest(f"mov eax, 7; xchg eax, [{HOLE}]; mov [{DATA}], eax; hlt")
    exit_ = expect(vcpu, Reason.MMIO)
    assert exit_.is_read
    exit_.reply(9)
    exit_ = expect(vcpu, Reason.MMIO)
    assert (exit_.is_read, exit_.value) == (False, 7)
    expect(vcpu, Reason.HLT)
    assert machine.word(DATA) == 9


@pytest.mark.parametrize("before", [1, 2, 3])
def test_write_across_the_end_of_a_page(machine: Machine, before: int) -> None:
    """In parts, of sizes that devices know, each aligned and within its page."""
    at = HOLE + PAGE - before
    vcpu = machine.guest(f"mov eax, 0x44332211; mov [{at}], eax; hlt")
    seen = accesses(vcpu)
    assert by_address(seen) == dict(enumerate(PATTERN[:4], at))
    assert all(place % len(data) == 0 for _, place, data in seen)


@pytest.mark.parametrize("before", [1, 2, 3])
def test_read_across_the_end_of_a_page(machine: Machine, before: int) -> None:
    at = PAGE - before
    device = bytearray(2 * PAGE)
    device[at : at + 4] = PATTERN[:4]
    vcpu = machine.guest(f"mov eax, [{HOLE + at}]; mov [{DATA}], eax; hlt")
    seen = accesses(vcpu, device)
    assert by_address(seen) == dict(enumerate(PATTERN[:4], HOLE + at))
    assert all(place % len(data) == 0 for _, place, data in seen)
    assert machine.ram.read(DATA, 4) == PATTERN[:4]


@pytest.mark.parametrize("before", [1, 3, 5, 7])
def test_8_bytes_across_the_end_of_a_page(machine: Machine, before: int) -> None:
    at = PAGE - before
    device = bytearray(3 * PAGE)
    device[at : at + 8] = PATTERN
    source = f"mov rax, [{HOLE + at}]; mov [{HOLE + at + PAGE}], rax; hlt"
    vcpu = machine.guest(source, "long")
    seen = accesses(vcpu, device)
    for read, place in ((True, HOLE + at), (False, HOLE + at + PAGE)):
        those = [access for access in seen if access[0] == read]
        assert by_address(those) == dict(enumerate(PATTERN, place))


@pytest.mark.parametrize("at", [0, 3], ids=["aligned", "unaligned"])
def test_unaligned_within_a_page(machine: Machine, at: int) -> None:
    """Not cut: a CPU makes one access of it."""
    vcpu = machine.guest(f"mov eax, 0x44332211; mov [{HOLE + at}], eax; hlt")
    assert accesses(vcpu) == [(False, HOLE + at, PATTERN[:4])]


def test_from_memory_into_a_device(machine: Machine) -> None:
    """The edge between RAM and a hole: the RAM's bytes go to RAM."""
    end = machine.RAM
    vcpu = machine.guest(f"mov eax, 0x44332211; mov [{end - 2}], eax; hlt")
    assert by_address(accesses(vcpu)) == {end: 0x33, end + 1: 0x44}
    assert machine.ram.read(end - 2, 2) == b"\x11\x22"


@needs("feature:fpu", "feature:long_mode")
def test_16_bytes_are_two_times_8(machine: Machine) -> None:
    source = f"""
        movdqu xmm0, [{HOLE}]
        movdqu [{HOLE + PAGE}], xmm0
        hlt
    """
    vcpu = machine.guest(source, "long")
    vcpu.registers.cr4 = 0x620  # OSFXSR
    device = bytearray(range(16)) + bytes(2 * PAGE)
    assert accesses(vcpu, device) == [
        (True, HOLE, bytes(range(8))),
        (True, HOLE + 8, bytes(range(8, 16))),
        (False, HOLE + PAGE, bytes(range(8))),
        (False, HOLE + PAGE + 8, bytes(range(8, 16))),
    ]


@pytest.mark.parametrize("backward", [False, True], ids=["up", "down"])
@pytest.mark.parametrize(("suffix", "size"), [("b", 1), ("w", 2), ("d", 4)])
def test_string_to_a_device(machine: Machine, suffix: str, size: int, backward: bool) -> None:
    total = 48
    last = total - size if backward else 0
    vcpu = machine.guest(
        f"""
        mov esi, {DATA + last}; mov edi, {HOLE + last}; mov ecx, {total // size}
        {"std" if backward else "cld"}
        rep movs{suffix}
        mov [0x3000], ecx; hlt
        """
    )
    text = bytes(range(100, 100 + total))
    machine.ram.write(DATA, text)
    machine.ram.write(0x3000, b"\xff" * 4)
    seen = accesses(vcpu)
    places = list(range(0, total, size))
    expected = [(False, HOLE + at, text[at : at + size]) for at in places]
    assert seen == (expected[::-1] if backward else expected)
    assert machine.word(0x3000) == 0


@pytest.mark.parametrize(("suffix", "size"), [("b", 1), ("d", 4)])
def test_string_from_a_device(machine: Machine, suffix: str, size: int) -> None:
    total = 48
    vcpu = machine.guest(
        f"mov esi, {HOLE}; mov edi, {DATA}; mov ecx, {total // size}; cld; rep movs{suffix}; hlt"
    )
    device = bytearray(range(50, 50 + total))
    seen = accesses(vcpu, device)
    assert by_address(seen) == dict(enumerate(device, HOLE))
    assert machine.ram.read(DATA, total) == device


def test_a_device_filled_by_a_string(machine: Machine) -> None:
    vcpu = machine.guest(f"mov eax, 0x44332211; mov edi, {HOLE}; mov ecx, 6; cld; rep stosd; hlt")
    assert by_address(accesses(vcpu)) == dict(enumerate(PATTERN[:4] * 6, HOLE))


def test_a_read_only_attachment(machine: Machine) -> None:
    """The guest reads it without an exit; a write is the VMM's, and the memory stays."""
    source = f"mov eax, [{HOLE}]; mov dword ptr [{HOLE}], 0x99; mov ebx, [{HOLE}]; hlt"
    vcpu = machine.guest(source)
    machine.ram.write(DATA, (0x1234).to_bytes(4, "little"))
    machine.session.attach(machine.ram, HOLE, offset=DATA, size=PAGE, read_only=True)
    exit_ = expect(vcpu, Reason.MMIO)
    assert (exit_.address, exit_.size, exit_.is_read, exit_.value) == (HOLE, 4, False, 0x99)
    assert exit_.flags & ExitFlag.WRITE_PROTECTED
    expect(vcpu, Reason.HLT)
    registers = vcpu.fetch("rax", "rbx")
    assert (registers.rax, registers.rbx) == (0x1234, 0x1234)
    assert machine.word(DATA) == 0x1234


def test_what_is_detached_is_a_hole(machine: Machine) -> None:
    machine.session.attach(machine.ram, HOLE, offset=DATA, size=PAGE)
    source = f"1: mov dword ptr [{HOLE}], 7; out 0x80, al; jmp 1b"
    vcpu = machine.guest(source)
    expect(vcpu, Reason.PORT)
    assert machine.word(DATA) == 7
    machine.session.detach(HOLE, PAGE)
    exit_ = expect(vcpu, Reason.MMIO)
    assert (exit_.address, exit_.value) == (HOLE, 7)
    machine.session.attach(machine.ram, HOLE, offset=DATA + PAGE, size=PAGE)
    expect(vcpu, Reason.PORT)
    expect(vcpu, Reason.PORT)
    assert machine.word(DATA + PAGE) == 7


def test_ring_3_makes_the_same_exits(machine: Machine) -> None:
    """What hardware executes, where there is some."""
    source = f"mov rax, 6; imul rax, rax, 7; mov [{HOLE}], rax; mov rbx, [{HOLE}]; 1: jmp 1b"
    vcpu = machine.guest(source, "user")
    exit_ = expect(vcpu, Reason.MMIO)
    assert (exit_.size, exit_.value) == (8, 42)
    exit_ = expect(vcpu, Reason.MMIO)
    exit_.reply(99)
    vcpu.pause()
    expect(vcpu, Reason.PAUSED)
    assert vcpu.fetch("rbx").rbx == 99
