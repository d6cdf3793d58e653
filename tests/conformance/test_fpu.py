"""FPU, SSE and AVX state: an XSAVE area in standard format, SDM vol. 1, 13.4."""

from __future__ import annotations

import struct
from typing import Final

import pytest

from dataspace.vcpu_page import Activity, Reason
from tests.conformance.claims import proves
from tests.conformance.machine import DATA, HOLE, Machine, expect
from vmm_client.vcpu import Vcpu

pytestmark = proves("feature:fpu")

LEGACY: Final = 512
HEADER: Final = 64
YMM: Final = 576  # of the standard format: CPUID leaf 0xd, sub-leaf 2
X87, SSE, AVX = 1, 2, 4


def area(vcpu: Vcpu, components: int = X87 | SSE) -> bytearray:
    """An initial area of this engine's size that says it holds these components."""
    made = bytearray(len(vcpu.fetch("fpu").fpu))
    struct.pack_into("<H", made, 0, 0x37F)  # FCW
    struct.pack_into("<I", made, 24, 0x1F80)  # MXCSR
    struct.pack_into("<Q", made, LEGACY, components)
    return made


def halted(machine: Machine) -> Vcpu:
    vcpu = machine.guest("1: hlt; jmp 1b")
    expect(vcpu, Reason.HLT)
    return vcpu


def test_its_size_is_told(machine: Machine) -> None:
    """With STARTUP, and the same with every exit; it holds at least x87 and SSE."""
    vcpu = machine.vcpu()
    size = len(vcpu.registers.fpu)
    assert LEGACY + HEADER <= size <= 4096
    machine.load("hlt")
    machine.enter(vcpu, "protected")
    vcpu.want("fpu")
    expect(vcpu, Reason.HLT)
    assert len(vcpu.registers.fpu) == size


def test_it_is_as_after_power_up(machine: Machine) -> None:
    """SDM vol. 3, table 10-1."""
    registers = machine.vcpu().registers
    assert struct.unpack_from("<H", registers.fpu, 0)[0] in {0x37F, 0x40}
    assert struct.unpack_from("<I", registers.fpu, 24)[0] == 0x1F80


@pytest.mark.parametrize("number", [0, 7, 15])
def test_what_is_charged_is_delivered(machine: Machine, number: int) -> None:
    """An XMM register alone; the others are as they were."""
    vcpu = halted(machine)
    charged = area(vcpu)
    value = bytes(range(number, number + 16))
    charged[160 + 16 * number : 176 + 16 * number] = value
    vcpu.registers.fpu = bytes(charged)
    expect(vcpu, Reason.HLT)
    seen = vcpu.fetch("fpu").fpu
    for index in range(16):
        expected = value if index == number else bytes(16)
        assert seen[160 + 16 * index : 176 + 16 * index] == expected


def test_it_is_delivered_where_it_is_wanted(machine: Machine) -> None:
    vcpu = halted(machine)
    vcpu.want("rax", "fpu")
    expect(vcpu, Reason.HLT)
    assert vcpu.registers.fpu
    vcpu.want("rax")
    expect(vcpu, Reason.HLT)
    with pytest.raises(LookupError):
        _ = vcpu.registers.fpu


def test_it_waits_for_the_end_of_an_instruction(machine: Machine) -> None:
    vcpu = machine.guest("hlt; in al, 0x60; hlt")
    expect(vcpu, Reason.HLT)
    charged = area(vcpu)
    charged[160:176] = b"0123456789abcdef"
    vcpu.registers.activity = Activity.ACTIVE
    expect(vcpu, Reason.PORT)
    vcpu.registers.fpu = bytes(charged)
    expect(vcpu, Reason.HLT)
    assert vcpu.fetch("fpu").fpu[160:176] == b"0123456789abcdef"


def test_registers_leave_it_alone(machine: Machine) -> None:
    vcpu = halted(machine)
    charged = area(vcpu)
    charged[176:192] = b"0123456789abcdef"
    vcpu.registers.fpu = bytes(charged)
    expect(vcpu, Reason.HLT)
    vcpu.registers.update({"rax": 1, "cr4": 0x600})
    expect(vcpu, Reason.HLT)
    assert vcpu.fetch("fpu").fpu[176:192] == b"0123456789abcdef"


def seen_in_ring_3(machine: Machine, source: str, charged: bytearray) -> Vcpu:
    """A guest in ring 3, which every engine of 64 bits executes, until it accesses HOLE."""
    vcpu = machine.guest(f"{source}; mov [{HOLE}], eax; 1: jmp 1b", "user")
    vcpu.registers.update({"cr4": 0x40620, "xcr0": 7 if charged[LEGACY] & AVX else 3})
    vcpu.registers.fpu = bytes(charged)
    expect(vcpu, Reason.MMIO)
    return vcpu


def test_the_guest_sees_sse(machine: Machine) -> None:
    charged = area(machine.vcpu(1))
    charged[160 + 32 : 160 + 48] = b"0123456789abcdef"
    struct.pack_into("<I", charged, 24, 0x5F80)  # MXCSR: round up
    seen_in_ring_3(machine, f"movdqu [{DATA}], xmm2; stmxcsr [{DATA + 16}]", charged)
    assert machine.ram.read(DATA, 16) == b"0123456789abcdef"
    assert machine.word(DATA + 16) == 0x5F80


def test_the_guest_sees_the_x87(machine: Machine) -> None:
    """Control word, and a number on its stack: 1.5."""
    charged = area(machine.vcpu(1))
    struct.pack_into("<H", charged, 0, 0xF7F)  # FCW: truncate
    charged[4] = 0x80  # FTW, abridged: ST0 is in physical register 7
    struct.pack_into("<H", charged, 2, 7 << 11)  # FSW: TOP
    charged[32:42] = (0x3FFF << 64 | 0xC000000000000000).to_bytes(10, "little")
    seen_in_ring_3(machine, f"fnstcw [{DATA}]; fstp qword ptr [{DATA + 8}]", charged)
    assert machine.word(DATA, 2) == 0xF7F
    assert struct.unpack("<d", machine.ram.read(DATA + 8, 8)) == (1.5,)


def test_the_guest_sees_avx(machine: Machine) -> None:
    probe = machine.vcpu(1)
    if len(probe.registers.fpu) < YMM + 256:
        pytest.skip("this engine moves no AVX state")
    charged = area(probe, X87 | SSE | AVX)
    charged[160 + 16 : 160 + 32] = b"lower half of it"
    charged[YMM + 16 : YMM + 32] = b"UPPER HALF OF IT"
    seen_in_ring_3(machine, f"vmovdqu [{DATA}], ymm1", charged)
    assert machine.ram.read(DATA, 32) == b"lower half of itUPPER HALF OF IT"


def test_the_vmm_sees_what_the_guest_computes(machine: Machine) -> None:
    charged = area(machine.vcpu(1))
    source = "mov eax, 3; cvtsi2sd xmm5, eax; mulsd xmm5, xmm5; fld1; fldpi"
    vcpu = seen_in_ring_3(machine, source, charged)
    vcpu.pause()
    expect(vcpu, Reason.PAUSED)
    seen = vcpu.fetch("fpu").fpu
    assert struct.unpack_from("<d", seen, 160 + 16 * 5) == (9.0,)
    assert seen[32:42].hex() == "35c26821a2da0fc90040"  # ST0: pi
    assert struct.unpack_from("<H", seen, 2)[0] >> 11 & 7 == 6  # FSW: TOP


@proves("exit:INVALID_STATE")
@pytest.mark.parametrize(
    ("at", "value"),
    [(24, 1 << 31), (LEGACY, 1 << 62), (LEGACY + 8, 1 << 63)],
    ids=["MXCSR", "XSTATE_BV", "XCOMP_BV"],
)
def test_what_no_cpu_takes_is_refused(machine: Machine, at: int, value: int) -> None:
    """Reserved bits: SDM vol. 1, 13.8. The state before stays."""
    vcpu = halted(machine)
    good = area(vcpu)
    good[160:176] = b"0123456789abcdef"
    vcpu.registers.fpu = bytes(good)
    expect(vcpu, Reason.HLT)
    bad = bytearray(good)
    bad[160:176] = bytes(16)
    struct.pack_into("<I" if at == 24 else "<Q", bad, at, value)
    vcpu.registers.fpu = bytes(bad)
    expect(vcpu, Reason.INVALID_STATE)
    expect(vcpu, Reason.HLT)
    assert vcpu.fetch("fpu").fpu[160:176] == b"0123456789abcdef"


def test_another_size_is_refused(machine: Machine) -> None:
    vcpu = halted(machine)
    with pytest.raises(ValueError, match="bytes"):
        vcpu.registers.fpu = bytes(100)
