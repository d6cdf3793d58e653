"""The registers of a stopped vCPU: read where the engine delivered them, written by charging them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, overload

from dataspace.registers import Segment
from dataspace.vcpu_page import ALL_SCALARS, ALL_SEGMENTS, FPU_BIT, MASK_AT, mask, names
from vmm_client.errors import NotValid
from vmm_client.init_sipi import init, signature, start_up

if TYPE_CHECKING:
    from vmm_client.vcpu import Vcpu


class Scalar:
    """A register that is a number, as an attribute of `Registers`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, registers: None, owner: type) -> Scalar: ...
    @overload
    def __get__(self, registers: Registers, owner: type) -> int: ...
    def __get__(self, registers: Registers | None, owner: type) -> Scalar | int:
        if registers is None:
            return self
        value = registers[self.name]
        assert isinstance(value, int)
        return value

    def __set__(self, registers: Registers, value: int) -> None:
        registers[self.name] = value


class SegmentRegister:
    """A segment register or descriptor table, as an attribute of `Registers`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, registers: None, owner: type) -> SegmentRegister: ...
    @overload
    def __get__(self, registers: Registers, owner: type) -> Segment: ...
    def __get__(self, registers: Registers | None, owner: type) -> SegmentRegister | Segment:
        if registers is None:
            return self
        value = registers[self.name]
        assert isinstance(value, Segment)
        return value

    def __set__(self, registers: Registers, value: Segment) -> None:
        registers[self.name] = value


class Registers(Mapping[str, int | Segment]):
    """By attribute (`registers.rip`) and by name (`registers["rip"]`); names as in
    `dataspace.registers`.

    Reading gives what was charged for the next run, else what the engine delivered with this exit,
    else raises NotValid. Writing charges: ValueError for a value beyond the register's width,
    TypeError for a number where a `Segment` belongs and the reverse, KeyError for an unknown name.

    All of it needs a vCPU that is stopped at an exit: NotStopped, NotStarted, Closed otherwise.
    """

    __slots__ = ("_vcpu",)

    rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi = (Scalar() for _ in range(8))
    r8, r9, r10, r11, r12, r13, r14, r15 = (Scalar() for _ in range(8))
    rip, rflags = Scalar(), Scalar()
    cr0, cr2, cr3, cr4, cr8 = (Scalar() for _ in range(5))
    dr0, dr1, dr2, dr3, dr6, dr7 = (Scalar() for _ in range(6))
    efer, xcr0, xss = Scalar(), Scalar(), Scalar()
    pdpte0, pdpte1, pdpte2, pdpte3 = (Scalar() for _ in range(4))
    sysenter_cs, sysenter_sp, sysenter_ip = Scalar(), Scalar(), Scalar()
    star, lstar, cstar, fmask, kernel_gs_base = (Scalar() for _ in range(5))
    tsc, tsc_offset, tsc_aux = Scalar(), Scalar(), Scalar()
    activity, interruptibility = Scalar(), Scalar()
    apic_base, pat = Scalar(), Scalar()
    es, cs, ss, ds, fs, gs = (SegmentRegister() for _ in range(6))
    ldtr, tr, gdtr, idtr = (SegmentRegister() for _ in range(4))

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu

    def __getitem__(self, name: str) -> int | Segment:
        page = self._vcpu.stopped_page()
        scalars, segments = mask((name,))
        for half in (page.charged, page.engine):
            if half.masks[0] & scalars or half.masks[1] & segments:
                return half.register(name)
        raise NotValid(name)

    def __setitem__(self, name: str, value: int | Segment) -> None:
        self._vcpu.stopped_page()
        self._vcpu.reply.charge(name, value)

    def __iter__(self) -> Iterator[str]:
        """The names of the registers that can be read now."""
        page = self._vcpu.stopped_page()
        (valid0, valid1), (charged0, charged1) = page.engine.masks, page.charged.masks
        return names((valid0 | charged0) & ALL_SCALARS, (valid1 | charged1) & ALL_SEGMENTS)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def update(self, values: Mapping[str, int | Segment]) -> None:
        """Charge several registers. Raises as writing does; those before the error are charged."""
        for name, value in values.items():
            self[name] = value

    def init(self) -> None:
        """Charge what INIT makes of a processor: it waits for `start_up` and executes nothing.

        Registers that the engine has not are passed over. CD and NW of CR0 stay, and EDX is EAX of the
        vCPU's CPUID leaf 1: Intel SDM volume 3, table 10-1. Raises as `Vcpu.fetch`, where CR0 was not
        delivered, and `Vcpu.cpuid`.
        """
        vcpu = self._vcpu
        has = vcpu.engine_registers
        if "cr0" in has and "cr0" not in self:
            vcpu.fetch("cr0")
        cr0 = self.cr0 if "cr0" in has else 0
        leaves = vcpu.cpuid() if vcpu.has("cpuid") else ()
        reset = init(cr0, signature(leaves))
        self.update({name: value for name, value in reset.items() if name in has})

    def start_up(self, vector: int) -> None:
        """Charge what a start-up IPI does after INIT: real mode at `vector` * 4096, active.
        ValueError for a vector beyond 255."""
        self.update(start_up(vector))

    def discharge(self, *which: str) -> None:
        """Take charges back, all if none is named: reading gives the engine's value again.

        What was charged stays in the page, and is ignored by the engine.
        """
        scalars, segments = mask(which) if which else (ALL_SCALARS, ALL_SEGMENTS | 1 << FPU_BIT)
        words = self._vcpu.stopped_page().vmm.u64
        words[MASK_AT // 8] &= ~scalars
        words[MASK_AT // 8 + 1] &= ~segments

    @property
    def fpu(self) -> bytes:
        """FPU, SSE and AVX state: the XSAVE area in standard format (SDM vol. 1, 13.4), as many
        bytes as this engine moves. Ask for it as `fpu`. Raises NotValid."""
        page = self._vcpu.stopped_page()
        size = page.engine.fpu_size
        for half, area in ((page.charged, page.fpu_charged), (page.engine, page.fpu_valid)):
            if half.masks[1] >> FPU_BIT & 1:
                return bytes(area[:size])
        raise NotValid("fpu")

    @fpu.setter
    def fpu(self, area: bytes) -> None:
        page = self._vcpu.stopped_page()
        size = page.engine.fpu_size
        if len(area) != size or not size:
            raise ValueError(f"the FPU area of this engine has {size} bytes, this has {len(area)}")
        page.fpu_charged[:size] = area
        self._vcpu.reply.charge_fpu()
