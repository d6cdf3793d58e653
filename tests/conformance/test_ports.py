"""Port I/O: width, direction, strings, and what the guest gets."""

from __future__ import annotations

import pytest

from dataspace.vcpu_page import Reason
from tests.conformance.claims import proves
from tests.conformance.machine import DATA, ORIGIN, Machine, expect

pytestmark = proves("exit:PORT")

LENGTH = 600
TEXT = bytes(number % 251 for number in range(LENGTH))


@pytest.mark.parametrize("mode", ["real", "protected", "long"])
@pytest.mark.parametrize(("size", "register"), [(1, "al"), (2, "ax"), (4, "eax")])
def test_out(machine: Machine, mode: str, size: int, register: str) -> None:
    vcpu = machine.guest(f"mov eax, 0x44332211; mov dx, 0x3f8; out dx, {register}; hlt", mode)
    exit_ = expect(vcpu, Reason.PORT)
    assert (exit_.address, exit_.size, exit_.count, exit_.is_read) == (0x3F8, size, 1, False)
    assert exit_.data == b"\x11\x22\x33\x44"[:size]
    assert exit_.value == int.from_bytes(exit_.data, "little")
    expect(vcpu, Reason.HLT)


@pytest.mark.parametrize(
    ("size", "register", "result"), [(1, "al", 0x443322FE), (2, "ax", 0x4433CAFE), (4, "eax", None)]
)
def test_in(machine: Machine, size: int, register: str, result: int | None) -> None:
    """The rest of eax stays."""
    vcpu = machine.guest(f"mov eax, 0x44332211; in {register}, 0x60; mov [{DATA}], eax; hlt")
    exit_ = expect(vcpu, Reason.PORT)
    assert (exit_.address, exit_.size, exit_.count, exit_.is_read) == (0x60, size, 1, True)
    exit_.reply(0xDEADCAFE)
    expect(vcpu, Reason.HLT)
    assert machine.word(DATA) == (0xDEADCAFE if result is None else result)


def test_in_that_nobody_answers_floats_high(machine: Machine) -> None:
    vcpu = machine.guest(f"xor eax, eax; in al, 0x60; mov [{DATA}], eax; hlt")
    expect(vcpu, Reason.PORT)
    expect(vcpu, Reason.HLT)
    assert machine.word(DATA) == 0xFF


@pytest.mark.parametrize(("source", "at"), [("nop; out 0x80, al", 1), ("nop; in eax, dx", 1)])
def test_ip_where_it_is_told(machine: Machine, source: str, at: int) -> None:
    """An engine may leave it out; if it tells it, it is the instruction's."""
    vcpu = machine.guest(f"{source}; hlt")
    assert expect(vcpu, Reason.PORT).ip in {None, ORIGIN + at}


@pytest.mark.parametrize("backward", [False, True], ids=["up", "down"])
@pytest.mark.parametrize(("suffix", "size"), [("b", 1), ("w", 2), ("d", 4)])
def test_string_out(machine: Machine, suffix: str, size: int, backward: bool) -> None:
    """In the order of the accesses, at one port, in as many exits as the engine likes."""
    first = DATA + LENGTH - size if backward else DATA
    vcpu = machine.guest(
        f"""
        mov esi, {first}; mov ecx, {LENGTH // size}; mov dx, 0x80
        {"std" if backward else "cld"}
        rep outs{suffix}
        mov [0x3000], esi; mov [0x3004], ecx; hlt
        """
    )
    machine.ram.write(DATA, TEXT)
    seen: list[bytes] = []
    exit_ = vcpu.turn()
    while exit_ and exit_.reason is Reason.PORT:
        assert (exit_.address, exit_.size, exit_.is_read) == (0x80, size, False)
        assert exit_.mid_instruction
        data = exit_.data
        seen += [data[at : at + size] for at in range(0, len(data), size)]
        exit_ = vcpu.turn()
    elements = [TEXT[at : at + size] for at in range(0, LENGTH, size)]
    assert seen == (elements[::-1] if backward else elements)
    end = DATA - size if backward else DATA + LENGTH
    assert (machine.word(0x3000), machine.word(0x3004)) == (end, 0)


@pytest.mark.parametrize("backward", [False, True], ids=["up", "down"])
@pytest.mark.parametrize(("suffix", "size"), [("b", 1), ("w", 2), ("d", 4)])
def test_string_in(machine: Machine, suffix: str, size: int, backward: bool) -> None:
    first = DATA + LENGTH - size if backward else DATA
    vcpu = machine.guest(
        f"""
        mov edi, {first}; mov ecx, {LENGTH // size}; mov dx, 0x80
        {"std" if backward else "cld"}
        rep ins{suffix}
        mov [0x3000], edi; mov [0x3004], ecx; hlt
        """
    )
    elements = [TEXT[at : at + size] for at in range(0, LENGTH, size)]
    given = iter(elements)
    exit_ = vcpu.turn()
    while exit_ and exit_.reason is Reason.PORT:
        assert (exit_.address, exit_.size, exit_.is_read) == (0x80, size, True)
        exit_.reply_data(b"".join(next(given) for _ in range(exit_.count)))
        exit_ = vcpu.turn()
    assert next(given, None) is None
    expected = elements[::-1] if backward else elements
    assert machine.ram.read(DATA, LENGTH) == b"".join(expected)
    end = DATA - size if backward else DATA + LENGTH
    assert (machine.word(0x3000), machine.word(0x3004)) == (end, 0)


def test_no_access_no_exit(machine: Machine) -> None:
    vcpu = machine.guest("xor ecx, ecx; mov dx, 0x80; rep outsb; hlt")
    expect(vcpu, Reason.HLT)


def test_a_bus_serves_strings_one_access_at_a_time(machine: Machine) -> None:
    """What `Exit.route` makes of an exit that joins several."""
    vcpu = machine.guest(f"mov esi, {DATA}; mov ecx, 5; mov dx, 0x80; cld; rep outsw; hlt")
    machine.ram.write(DATA, b"a-b-c-d-e-")
    seen: list[tuple[int, int, int]] = []

    class Log:
        def read(self, address: int, size: int) -> int:
            raise AssertionError(address, size)

        def write(self, address: int, size: int, value: int) -> None:
            seen.append((address, size, value))

    exit_ = vcpu.turn()
    while exit_ and exit_.route(ports=Log(), mmio=Log()):
        exit_ = vcpu.turn()
    assert seen == [(0x80, 2, ord(letter) | ord("-") << 8) for letter in "abcde"]
