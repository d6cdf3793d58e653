"""Registers as the guest sees them: what the VMM charges the guest stores, and what the guest loads
the VMM reads."""

from __future__ import annotations

from typing import Final, NamedTuple

import pytest

from dataspace.registers import Segment
from dataspace.vcpu_page import Reason
from tests.conformance.claims import proves
from tests.conformance.host import hardware_virtualization
from tests.conformance.machine import (
    DATA,
    FLAT_DATA,
    HOLE,
    PAGE,
    STACK,
    TABLES,
    TASK,
    Machine,
    expect,
)

CANONICAL: Final = 0xFFFF800012345000
MSRS: Final = {
    "sysenter_cs": (0x174, 8),
    "sysenter_sp": (0x175, 0x123456),
    "sysenter_ip": (0x176, 0x654321),
    "pat": (0x277, 0x0007010600070106),
    "efer": (0xC0000080, 0x501),
    "star": (0xC0000081, 0x0023001000000000),
    "lstar": (0xC0000082, CANONICAL),
    "cstar": (0xC0000083, CANONICAL),
    "fmask": (0xC0000084, 0x47700),
    "kernel_gs_base": (0xC0000102, CANONICAL),
    "tsc_aux": (0xC0000103, 7),
}
READ_ONLY_MSRS: Final = {"apic_base": (0x1B, 0xFEE00800)}


class Sight(NamedTuple):
    """How a guest shows a register and how it sets it, and a value that both can have."""

    store: str  # to DATA
    load: str  # the value, or nothing where only the VMM can
    value: int | Segment
    seen: int  # at DATA
    size: int = 4
    mode: str = "protected"


def number(register: str, value: int = 0x11223344) -> Sight:
    return Sight(f"mov [{DATA}], {register}", f"mov {register}, {value}", value, value)


def control(register: str, value: int, mode: str = "protected") -> Sight:
    wide = "eax" if mode == "protected" else "rax"
    return Sight(
        f"mov {wide}, {register}; mov [{DATA}], eax",
        f"mov eax, {value}; mov {register}, {wide}",
        value,
        value,
        mode=mode,
    )


def selector(register: str) -> Sight:
    return Sight(
        f"mov ax, {register}; mov [{DATA}], ax",
        f"mov eax, 0x10; mov {register}, ax",
        FLAT_DATA,
        0x10,
        2,
    )


def table(register: str, store: str, load: str) -> Sight:
    limit, base = 0x57, TABLES
    image = limit | base << 16
    source = (
        f"mov dword ptr [{DATA}], {image & 0xFFFFFFFF}; mov word ptr [{DATA + 4}], {image >> 32}"
    )
    return Sight(
        f"{store} [{DATA}]", f"{source}; {load} [{DATA}]", Segment(0, 0, limit, base), image, 6
    )


def msr(index: int, value: int) -> Sight:
    return Sight(
        f"mov ecx, {index}; rdmsr; mov [{DATA}], eax; mov [{DATA + 4}], edx",
        f"mov ecx, {index}; mov eax, {value & 0xFFFFFFFF}; mov edx, {value >> 32}; wrmsr",
        value,
        value,
        8,
        "long",
    )


WIDE: Final = 0x8877665544332211
SIGHTS: Final[dict[str, Sight]] = {
    **{f"r{name}": number(f"e{name}") for name in ("ax", "cx", "dx", "bx", "bp", "si", "di")},
    "rsp": number("esp", STACK - 64),
    **{
        f"r{index}": Sight(
            f"mov [{DATA}], r{index}", f"mov r{index}, {WIDE}", WIDE, WIDE, 8, "long"
        )
        for index in range(8, 16)
    },
    "rflags": Sight(
        f"pushfd; pop dword ptr [{DATA}]", "push 0xad7; popfd; cld", 0x2D7 | 0x800, 0xAD7
    ),
    "cr0": control("cr0", 0x31),
    "cr2": control("cr2", 0x12345678),
    "cr3": control("cr3", 0x5000),
    "cr4": control("cr4", 0x200),
    "cr8": control("cr8", 5, "long"),
    **{f"dr{index}": control(f"dr{index}", 0x1000 * (index + 1)) for index in range(4)},
    "dr6": control("dr6", 0xFFFF0FF1),
    "dr7": control("dr7", 0x401),
    **{name: selector(name) for name in ("es", "ds", "fs", "gs", "ss")},
    "cs": Sight(
        f"mov [{DATA}], cs",
        "push 0x08; push offset 1f; retf; 1:",
        Segment(0x08, 0xC9B, 0xFFFFFFFF, 0),
        0x08,
        2,
    ),
    "gdtr": table("gdtr", "sgdt", "lgdt"),
    "idtr": table("idtr", "sidt", "lidt"),
    "tr": Sight(f"str word ptr [{DATA}]", "mov eax, 0x40; ltr ax", TASK, 0x40, 2),
    "ldtr": Sight(f"sldt word ptr [{DATA}]", "", Segment(0x50, 0x82, 0x1F, 0x3000), 0x50, 2),
    **{name: msr(*pair) for name, pair in MSRS.items()},
    **{name: msr(*pair)._replace(load="") for name, pair in READ_ONLY_MSRS.items()},
}
# libx86emu keeps these registers, and has none of the instructions that show or load them.
UNSEEN: Final = {"x86emu": frozenset({"tr", "ldtr"})}


@pytest.fixture(autouse=True)
def seen(request: pytest.FixtureRequest, engine: str) -> None:
    """Skip what a guest of this engine cannot look at."""
    register = request.node.callspec.params.get("register")
    if register in UNSEEN.get(engine, ()):
        pytest.skip(f"{engine} executes no instruction that shows {register}")


every_sight = pytest.mark.parametrize(
    "register", [pytest.param(name, marks=proves(f"register:{name}")) for name in SIGHTS]
)


@every_sight
def test_the_guest_sees_what_is_charged(machine: Machine, register: str) -> None:
    sight = SIGHTS[register]
    vcpu = machine.guest(f"{sight.store}; hlt", sight.mode)
    vcpu.registers[register] = sight.value
    expect(vcpu, Reason.HLT)
    assert machine.word(DATA, sight.size) == sight.seen


@pytest.mark.parametrize(
    "register",
    [
        pytest.param(name, marks=proves(f"register:{name}"))
        for name, sight in SIGHTS.items()
        if sight.load
    ],
)
def test_the_vmm_sees_what_the_guest_loads(machine: Machine, register: str) -> None:
    sight = SIGHTS[register]
    vcpu = machine.guest(f"{sight.load}; hlt", sight.mode)
    expect(vcpu, Reason.HLT)
    seen = vcpu.fetch(register)[register]
    if isinstance(seen, Segment) and isinstance(sight.value, Segment):
        seen = seen._replace(
            attributes=seen.attributes & ~1 | sight.value.attributes & 1
        )  # accessed
    assert seen == sight.value


@pytest.mark.parametrize(
    "register",
    [pytest.param(n, marks=proves(f"register:{n}")) for n in ("es", "ds", "fs", "gs", "ss")],
)
def test_a_segments_base(machine: Machine, register: str) -> None:
    vcpu = machine.guest(f"mov al, byte ptr {register}:[0x10]; out 0x80, al")
    vcpu.registers[register] = Segment(0x10, 0xC93, 0xFFFFFFFF, DATA)
    machine.ram.write(DATA + 0x10, b"\x5a")
    assert expect(vcpu, Reason.PORT).value == 0x5A


@pytest.mark.parametrize(
    "register", [pytest.param(n, marks=proves(f"register:{n}")) for n in ("fs", "gs")]
)
def test_a_segments_base_in_long_mode(machine: Machine, register: str) -> None:
    vcpu = machine.guest(f"mov al, byte ptr {register}:[0x10]; out 0x80, al", "long")
    vcpu.registers[register] = Segment(0, 0xC93, 0xFFFFFFFF, DATA)
    machine.ram.write(DATA + 0x10, b"\x5a")
    assert expect(vcpu, Reason.PORT).value == 0x5A


@proves("feature:paging", "register:cr3")
def test_the_page_tables(machine: Machine) -> None:
    """A page of linear addresses somewhere else, by a charged CR3."""
    vcpu = machine.guest("mov al, [0x40000010]; out 0x80, al", "long")
    machine.ram.write(0x9000 + PAGE + 8, (0x6007).to_bytes(8, "little"))  # the second GiB
    machine.ram.write(0x6000, (0x7007).to_bytes(8, "little"))
    machine.ram.write(0x7000, (DATA | 7).to_bytes(8, "little"))
    machine.ram.write(DATA + 0x10, b"\x77")
    assert expect(vcpu, Reason.PORT).value == 0x77


@proves("register:pdpte0", "register:pdpte1", "register:pdpte2", "register:pdpte3")
def test_the_four_page_directories_of_pae(machine: Machine) -> None:
    """Charged, they count, whatever stands in memory: SDM vol. 3, 4.4.1."""
    reads = (f"mov al, [{gib << 30 | 0x10}]; out 0x80, al" for gib in range(4))
    vcpu = machine.guest("; ".join(reads))
    for gib, directory in enumerate((0x5000, 0x6000, 0xA000, 0xB000)):
        machine.ram.write(directory, (gib << 21 | 0x83).to_bytes(8, "little"))
        vcpu.registers[f"pdpte{gib}"] = directory | 1
        page = gib * 0x2000
        if gib:
            machine.session.attach(machine.ram, gib << 21, offset=page, size=PAGE)
        machine.ram.write(page + 0x10, bytes([0x11 * (gib + 1)]))
    vcpu.registers.update({"cr3": 0xF000, "cr4": 0x20, "cr0": 0x80000011})
    assert [expect(vcpu, Reason.PORT).value for _ in range(4)] == [0x11, 0x22, 0x33, 0x44]


@proves("feature:long_mode", "register:efer", "register:rip")
def test_the_guest_enters_long_mode(machine: Machine) -> None:
    """Hand over hand: PAE, tables, LME, paging, a far return into 64 bits."""
    vcpu = machine.guest(
        """
        mov eax, cr4; or eax, 0x20; mov cr4, eax
        mov eax, 0x9000; mov cr3, eax
        mov ecx, 0xc0000080; rdmsr; or eax, 0x100; wrmsr
        mov eax, cr0; or eax, 0x80000000; mov cr0, eax
        push 0x18; push offset 1f; retf
        .code64
        1: mov rax, 0x1122334455667788; hlt
        """
    )
    machine.page_tables()
    expect(vcpu, Reason.HLT)
    registers = vcpu.fetch("rax", "efer", "cs")
    assert registers.rax == 0x1122334455667788
    assert (registers.efer, registers.cs.selector) == (0x500, 0x18)


@proves("register:xcr0")
def test_xgetbv(machine: Machine, engine: str) -> None:
    """In ring 3, which every engine of 64 bits executes."""
    if engine == "kvm" and not hardware_virtualization():
        pytest.skip("without VMX or SVM, ring 3 runs with the host's XCR0")
    vcpu = machine.guest(f"xor ecx, ecx; xgetbv; mov [{HOLE}], eax; 1: jmp 1b", "user")
    vcpu.registers.update({"cr4": 0x40220, "xcr0": 3})
    assert expect(vcpu, Reason.MMIO).value == 3
