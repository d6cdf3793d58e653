"""The software CPU itself: what its vCPUs show of it, and what it does at the edges."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable
from typing import Final

import pytest

from core_service.engine.protocol import Transport
from dataspace.registers import Segment
from dataspace.vcpu_page import (
    FPU_CHARGED,
    FPU_VALID,
    ExitFlag,
    InjectType,
    Reason,
    ReplyFlag,
)
from tests.engine.harness import (
    DATA_SEGMENTS,
    ORIGIN,
    RAM,
    STACK,
    Engine,
    EngineGoneError,
    Vcpu,
    guest,
    memory,
)
from tests.guests.assemble import assemble

pytestmark = pytest.mark.parametrize("variant", ["soft"], indirect=True)

HOLE: Final = 0x100000
PAGE: Final = 4096
NANOSECONDS_KHZ: Final = 1_000_000
FPU_BYTES: Final = 2688


def registers_after(engine: Engine, source: str, *names: str, mode: str = "protected") -> list[int]:
    """Scalars at the guest's HLT."""
    with guest(engine, Transport.PAGE, source, mode) as vcpu:
        vcpu.expect(Reason.HLT)
        return [vcpu.scalar(name) for name in names]


# ---- reset, CPUID, TSC


def test_reset_state(engine: Engine) -> None:
    """SDM vol. 3, table 9-1."""
    vcpu = Vcpu(engine, Transport.PAGE)
    vcpu.expect(Reason.STARTUP)
    state = vcpu.exit.registers()
    assert state["cs"] == Segment(0xF000, 0x93, 0xFFFF, 0xFFFF0000)
    assert {name: state[name] for name in ("rip", "rflags", "rdx", "cr0", "cr4", "efer")} == {
        "rip": 0xFFF0,
        "rflags": 2,
        "rdx": 0x60663,
        "cr0": 0x60000010,
        "cr4": 0,
        "efer": 0,
    }
    assert {name: state[name] for name in ("dr6", "dr7", "xcr0", "pat", "apic_base")} == {
        "dr6": 0xFFFF0FF0,
        "dr7": 0x400,
        "xcr0": 1,
        "pat": 0x0007040600070406,
        "apic_base": 0xFEE00900,
    }
    assert vcpu.exit.tsc_khz == NANOSECONDS_KHZ
    assert vcpu.exit.fpu_size == FPU_BYTES
    vcpu.close()


def cpuid(engine: Engine, leaf: int) -> list[int]:
    """eax, ebx, ecx, edx."""
    source = f"mov eax, {leaf}; xor ecx, ecx; cpuid; hlt"
    return registers_after(engine, source, "rax", "rbx", "rcx", "rdx")


def test_cpuid_hides_what_nothing_serves(engine: Engine) -> None:
    _eax, ebx, ecx, edx = cpuid(engine, 1)
    monitor, vmx, x2apic, deadline, hypervisor, apic = 3, 5, 21, 24, 31, 9
    assert not ecx & (1 << monitor | 1 << vmx | 1 << x2apic | 1 << deadline)
    assert not edx & 1 << apic
    assert ecx >> hypervisor & 1
    assert ebx >> 24 == 0


@pytest.mark.parametrize("leaf", [5, 6, 0xA, 0xB])
def test_cpuid_leaves_that_are_empty(engine: Engine, leaf: int) -> None:
    assert cpuid(engine, leaf) == [0, 0, 0, 0]


def test_cpuid_tells_the_tsc_frequency(engine: Engine) -> None:
    assert cpuid(engine, 0x15) == [1, 1, NANOSECONDS_KHZ * 1000, 0]


@pytest.mark.parametrize("leaf", [0x17, 0x40000001, 0x80000009, 0xFFFFFFFF])
def test_cpuid_beyond_its_end_is_the_last_basic_leaf(engine: Engine, leaf: int) -> None:
    assert cpuid(engine, leaf) == [1000, 1000, 100, 0]


def test_cpuid_names_us(engine: Engine) -> None:
    eax, *name = cpuid(engine, 0x40000000)
    assert eax == 0x40000000
    assert struct.pack("<3I", *name) == b"vmsession\0\0\0"


@pytest.mark.parametrize("instruction", ["vmxoff", "monitor", "mwait"])
def test_hidden_instructions_are_undefined(engine: Engine, instruction: str) -> None:
    """#UD, which without an IDT ends in a triple fault."""
    with guest(engine, Transport.PAGE, f"{instruction}; hlt") as vcpu:
        vcpu.charge(idtr=Segment(0, 0, 0, 0))
        vcpu.expect(Reason.SHUTDOWN)


def test_tsc_is_written_by_guest_and_vmm(engine: Engine) -> None:
    source = """
        mov ecx, 0x10
        mov eax, 1000
        mov edx, 5
        wrmsr
        rdtsc
        mov ebx, edx
        out 0x80, al
        rdtsc
        hlt
    """
    with guest(engine, Transport.PAGE, source) as vcpu:
        vcpu.expect(Reason.PORT)
        vcpu.charge(tsc=7 << 32)
        vcpu.want("rbx", "rdx")
        assert vcpu.expect(Reason.HLT).registers() == {"rbx": 5, "rdx": 7}


# ---- memory at the edges


def test_device_access_across_two_pages(engine: Engine) -> None:
    """Two physical accesses of 3 and 5 bytes, cut to sizes that devices know."""
    with guest(engine, Transport.PAGE, f"mov rax, [{HOLE + PAGE - 3}]; hlt", "long") as vcpu:
        seen = []
        while vcpu.run().reason == Reason.MMIO:
            seen.append((vcpu.exit.address - HOLE - PAGE, vcpu.exit.size))
            vcpu.reply.set_data(bytes([len(seen)]) * vcpu.exit.size)
        assert seen == [(-3, 1), (-2, 2), (0, 4), (4, 1)]
        assert vcpu.scalar("rax") == 0x04_03030303_0202_01


def test_device_access_of_a_vector(engine: Engine) -> None:
    """32 bytes are four exits of 8."""
    source = f"vmovdqu ymm0, [{HOLE}]; vmovdqu [{HOLE + 64}], ymm0; hlt"
    with guest(engine, Transport.PAGE, source, "long") as vcpu:
        vcpu.charge(cr4=0x40620, xcr0=7)
        parts = [0x1111 * (number + 1) for number in range(4)]
        for number, part in enumerate(parts):
            exit_ = vcpu.expect(Reason.MMIO)
            assert (exit_.address, exit_.size) == (HOLE + 8 * number, 8)
            vcpu.reply.set_value(part)
        for part in parts:
            assert vcpu.expect(Reason.MMIO).value == part
        vcpu.expect(Reason.HLT)


def test_user_writes_to_rom_without_paging(engine: Engine) -> None:
    """Bochs' TLB would let it through once the page was read."""
    source = f"mov eax, [{HOLE}]; mov [{HOLE}], eax; mov ebx, [{HOLE}]; out 0x80, eax; hlt"
    rom = memory(PAGE, b"\x11\x22\x33\x44")
    try:
        engine.map(HOLE, rom, PAGE, writable=False)
    finally:
        os.close(rom)
    with guest(engine, Transport.PAGE, source) as vcpu:
        user = dict.fromkeys(DATA_SEGMENTS, Segment(0x23, 0xCF3, 0xFFFFFFFF, 0))
        vcpu.charge(cs=Segment(0x1B, 0xCFB, 0xFFFFFFFF, 0), rflags=0x3002, **user)
        exit_ = vcpu.expect(Reason.MMIO)
        assert (exit_.address, exit_.value) == (HOLE, 0x44332211)
        assert exit_.flags & ExitFlag.WRITE_PROTECTED
        assert vcpu.expect(Reason.PORT).value == 0x44332211


def test_fetch_of_an_instruction_whose_second_page_is_missing(engine: Engine) -> None:
    """The fault names the second page; nothing was executed, and it goes on when the page is there."""
    code = assemble("mov eax, 0x12345678", 32)
    with guest(engine, Transport.PAGE, "hlt") as vcpu:
        assert vcpu.memory
        start = RAM - 2
        vcpu.memory[start:RAM] = code[:2]
        vcpu.charge(rip=start, rax=1)
        vcpu.want("rip", "rax", "rflags")
        exit_ = vcpu.expect(Reason.MEMORY_FAULT)
        assert (exit_.address, exit_.ip) == (RAM, start)
        assert exit_.flags & ExitFlag.FETCH
        assert exit_.registers() == {"rip": start, "rax": 1, "rflags": 2}
        with engine.ram(RAM, code[2:] + b"\xf4"):
            assert vcpu.expect(Reason.HLT).registers()["rax"] == 0x12345678


def test_page_tables_that_are_nowhere_are_read_as_a_device(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "hlt", "long") as vcpu:
        vcpu.charge(cr3=HOLE)
        exit_ = vcpu.expect(Reason.MMIO)
        assert (exit_.address, exit_.size) == (HOLE, 8)


def test_kept_interrupt_shadow(engine: Engine) -> None:
    """An interrupt enters neither right after STI nor during a fetch fault there."""
    with guest(engine, Transport.PAGE, "hlt") as vcpu:
        assert vcpu.memory
        vcpu.memory[RAM - 1 : RAM] = b"\xfb"  # sti
        vcpu.charge(rip=RAM - 1)
        vcpu.want("interruptibility")
        exit_ = vcpu.expect(Reason.MEMORY_FAULT)
        assert exit_.registers() == {"interruptibility": 1}
        assert exit_.flags & ExitFlag.IF
        assert not exit_.flags & ExitFlag.INTERRUPTIBLE


# ---- state


@pytest.mark.parametrize(
    "refused",
    [
        {"cr0": 0x80000000},  # paging without protection
        {"cr0": 1 << 33},
        {"cr4": 1 << 63},
        {"cr4": 1 << 13},  # VMXE, which this CPU does not have
        {"efer": 0x400},  # LMA without paging
        {"efer": 1 << 12},
        {"rflags": 1 << 17 | 1 << 30},
        {"rip": 1 << 32},
        {"xcr0": 0},
        {"xcr0": 5},  # AVX without SSE
        {"xcr0": 1 << 40},
        {"pat": 2},
        {"cr8": 16},
        {"cr3": 1 << 39},
        {"pdpte0": 1 | 1 << 1},
        {"pdpte3": 1 | 1 << 39},
        {"dr7": 1 << 32},
        {"lstar": 1 << 47},
        {"gdtr": Segment(0, 0, 0x10000, 0)},
        {"tr": Segment(0x40, 0x89, 0x67, 0)},  # a TSS that is not busy
    ],
    ids=str,
)
def test_state_that_cannot_be(engine: Engine, refused: dict[str, int | Segment]) -> None:
    """Nothing is executed, and the state before is still there."""
    with guest(engine, Transport.PAGE, "out 0x80, al; hlt") as vcpu:
        vcpu.expect(Reason.PORT)
        vcpu.reply.set_flags(ReplyFlag.COMPLETE)
        vcpu.expect(Reason.COMPLETED)
        vcpu.charge(**refused)
        vcpu.expect(Reason.INVALID_STATE)
        vcpu.expect(Reason.HLT)


def test_every_register_takes_back_what_it_gave(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "hlt", "long") as vcpu:
        vcpu.expect(Reason.HLT)
        vcpu.want_all()
        vcpu.reply.set_flags(ReplyFlag.FETCH)
        before = vcpu.run().registers()
        vcpu.charge(**before)
        after = vcpu.expect(Reason.HLT).registers()
        moving = {"tsc"}
        assert {k: v for k, v in after.items() if k not in moving} == {
            k: v for k, v in before.items() if k not in moving
        }


def fpu_area(control: int = 0x37F, components: int = 0xE7) -> bytearray:
    """An XSAVE area with a value in every register: SDM vol. 1, 13.4."""
    area = bytearray(FPU_BYTES)
    struct.pack_into("<HHBxH", area, 0, control, 3 << 11, 0xFF, 0x7FF)
    struct.pack_into("<QQI", area, 8, 0x1111, 0x2222, 0x1F80)
    for number in range(8):
        struct.pack_into("<QH", area, 32 + 16 * number, 1 << 63 | number, 0x3FFF + number)
    for start, end in ((160, 416), (576, 832), (1088, FPU_BYTES)):
        area[start:end] = bytes((at * 7 + 1) % 256 for at in range(start, end))
    struct.pack_into("<Q", area, 512, components)
    return area


def charge_fpu(vcpu: Vcpu, area: bytearray) -> None:
    """With the next run."""
    assert vcpu.map
    vcpu.map[FPU_CHARGED : FPU_CHARGED + len(area)] = area
    vcpu.reply.charge_fpu()


def read_fpu(vcpu: Vcpu) -> bytes:
    """Of the stopped vCPU."""
    vcpu.fetch("fpu")
    assert vcpu.map
    return vcpu.map[FPU_VALID : FPU_VALID + FPU_BYTES]


def test_fpu_state_comes_back(engine: Engine) -> None:
    area = fpu_area()
    with guest(engine, Transport.PAGE, "hlt") as vcpu:
        charge_fpu(vcpu, area)
        vcpu.expect(Reason.HLT)
        struct.pack_into("<I", area, 28, 0xFFFF)  # MXCSR_MASK is the engine's
        assert read_fpu(vcpu) == area


def test_fpu_components_that_are_not_there_are_initial(engine: Engine) -> None:
    """As XRSTOR has it: SDM vol. 1, 13.8.1."""
    with guest(engine, Transport.PAGE, "hlt") as vcpu:
        charge_fpu(vcpu, fpu_area())
        vcpu.expect(Reason.HLT)
        charge_fpu(vcpu, fpu_area(components=0))
        vcpu.expect(Reason.HLT)
        area = read_fpu(vcpu)
        assert struct.unpack_from("<HHB", area) == (0x37F, 0, 0)
        assert not any(area[32:512])
        assert not any(area[576:])


def test_fpu_state_reaches_the_guest(engine: Engine) -> None:
    """ST(0) is 1.0 x 2^0, XMM1 and the upper half of YMM1 as charged."""
    source = """
        fistp dword ptr [0x2000]
        movd eax, xmm1
        vextracti128 xmm2, ymm1, 1
        movd ebx, xmm2
        hlt
    """
    with guest(engine, Transport.PAGE, source) as vcpu:
        area = fpu_area()
        charge_fpu(vcpu, area)
        vcpu.charge(cr0=0x13, cr4=0x40620, xcr0=7)
        vcpu.expect(Reason.HLT)
        assert vcpu.memory
        assert vcpu.memory[0x2000:0x2004] == b"\x01\0\0\0"
        assert vcpu.scalar("rax") == struct.unpack_from("<I", area, 160 + 16)[0]
        assert vcpu.scalar("rbx") == struct.unpack_from("<I", area, 576 + 16)[0]


@pytest.mark.parametrize(
    ("at", "value"),
    [(512, 1 << 3), (512, 1 << 63), (520, 1 << 63), (536, 1), (24, 1 << 31)],
    ids=["component", "last component", "compacted", "reserved", "mxcsr"],
)
def test_fpu_state_that_cannot_be(engine: Engine, at: int, value: int) -> None:
    with guest(engine, Transport.PAGE, "hlt") as vcpu:
        vcpu.expect(Reason.HLT)
        area = fpu_area()
        width = "<I" if at == 24 else "<Q"
        struct.pack_into(width, area, at, value)
        charge_fpu(vcpu, area)
        vcpu.expect(Reason.INVALID_STATE)


# ---- events


def test_exception_with_error_code(engine: Engine) -> None:
    """In long mode, through an IDT gate; the handler sees the code on its stack."""
    handler = 0x3000
    with guest(engine, Transport.PAGE, "nop; hlt", "long") as vcpu:
        assert vcpu.memory
        code = assemble("pop rax; hlt", 64, handler)
        vcpu.memory[handler : handler + len(code)] = code
        gate = struct.pack("<HHHHQ", handler, 8, 0x8E00, 0, 0)
        vcpu.memory[0x4000 + 13 * 16 : 0x4000 + 14 * 16] = gate
        vcpu.memory[0x5008:0x5010] = struct.pack("<Q", 0x00AF9A000000FFFF)
        vcpu.charge(idtr=Segment(0, 0, 0xFFF, 0x4000), gdtr=Segment(0, 0, 15, 0x5000))
        vcpu.reply.inject(InjectType.EXCEPTION, 13, 0x1234)
        vcpu.expect(Reason.HLT)
        assert vcpu.scalar("rax") == 0x1234


def test_fault_during_delivery_is_a_shutdown_in_the_end(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "nop; hlt") as vcpu:
        vcpu.charge(idtr=Segment(0, 0, 0, 0))
        vcpu.reply.inject(InjectType.EXCEPTION, 6)
        vcpu.expect(Reason.SHUTDOWN)


def test_life_after_shutdown(engine: Engine) -> None:
    """The VMM may set the vCPU up again; one fault then is one fault, not the third."""
    handler = 0x3000
    with guest(engine, Transport.PAGE, "ud2") as vcpu:
        assert vcpu.memory
        vcpu.charge(idtr=Segment(0, 0, 0, 0))
        vcpu.expect(Reason.SHUTDOWN)
        vcpu.memory[handler] = 0xF4
        vcpu.memory[0x4000 + 6 * 8 : 0x4000 + 7 * 8] = struct.pack("<HHHH", handler, 8, 0x8E00, 0)
        vcpu.memory[0x5008:0x5010] = struct.pack("<Q", 0x00CF9A000000FFFF)
        vcpu.charge(idtr=Segment(0, 0, 0xFF, 0x4000), gdtr=Segment(0, 0, 15, 0x5000), activity=0)
        vcpu.charge(rip=ORIGIN)
        assert vcpu.expect(Reason.HLT).ip == handler


def test_fpu_error_without_anybody_to_tell(engine: Engine) -> None:
    """CR0.NE = 0: the error goes to an interrupt controller that does not exist here."""
    source = "fninit; fldcw [0x2000]; fld1; fldz; fdivp; fwait; fld1; hlt"
    with guest(engine, Transport.PAGE, source) as vcpu:
        vcpu.charge(cr0=0x11)
        vcpu.expect(Reason.HLT)


def test_what_bochs_cannot_execute_is_an_internal_error(engine: Engine) -> None:
    """It panics at an IRET from a nested task where there is no task. The vCPU is where it was, and goes
    on from another state."""
    panic = 1
    with guest(engine, Transport.PAGE, "nop; iretd; hlt") as vcpu:
        vcpu.charge(tr=Segment(0, 0, 0, 0), rflags=0x4002)
        vcpu.want("rip", "rsp")
        exit_ = vcpu.expect(Reason.INTERNAL_ERROR)
        assert (exit_.detail, exit_.ip) == (panic, ORIGIN + 1)
        assert exit_.instruction_bytes[:2] == b"\xcf\xf4"
        assert exit_.registers() == {"rip": ORIGIN + 1, "rsp": STACK}
        assert vcpu.expect(Reason.INTERNAL_ERROR).ip == ORIGIN + 1
        vcpu.charge(rip=ORIGIN + 2, rflags=2)
        vcpu.expect(Reason.HLT)


# ---- the end


def test_crash_is_told(spawn: Callable[[], Engine]) -> None:
    with spawn() as engine:
        engine.hello()
        os.kill(engine.pid, signal.SIGSEGV)
        with pytest.raises(EngineGoneError) as error:
            engine.receive()
        assert str(error.value).startswith("software CPU: signal 11 at guest rip 0x")
        assert engine.wait() == 1
