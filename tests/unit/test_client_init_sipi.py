"""How a VMM starts another processor: registers of INIT and SIPI, and CPUID leaves."""

from __future__ import annotations

import pytest

from dataspace.registers import SCALARS, SEGMENTS, Segment
from dataspace.vcpu_page import Activity, Reason, ReplyFlag
from tests.unit.client_scripted_engine import Owner, Record, Script, ScriptedEngine, Values, vcpu_on
from vmm_client.cpuid import CpuidLeaf
from vmm_client.msr import MsrRange

KEPT_BY_INIT = {
    *("xcr0", "xss", "pdpte0", "pdpte1", "pdpte2", "pdpte3", "sysenter_cs", "sysenter_sp"),
    *("sysenter_ip", "star", "lstar", "cstar", "fmask", "kernel_gs_base", "tsc", "tsc_offset"),
    *("tsc_aux", "apic_base", "pat"),
}


def charged_by(vector: int | None = None, owner: Owner | None = None, cr0: int = 0) -> Values:
    """What INIT, or SIPI with a vector, charges where CR0 was delivered."""
    charged: Values = {}

    def script() -> Script:
        charged.update((yield Record(Reason.STARTUP, registers={"cr0": cr0})).charged)
        yield Record(Reason.SHUTDOWN)

    with ScriptedEngine(script) as engine:
        vcpu = vcpu_on(engine, owner)
        exits = vcpu.exits()
        next(exits)
        if vector is None:
            vcpu.registers.init()
        else:
            vcpu.registers.start_up(vector)
        next(exits)
        vcpu.close()
    return charged


def test_init_resets_what_table_10_1_says_and_waits() -> None:
    charged = charged_by(cr0=0x60000010)
    assert set(charged) == {*SCALARS, *SEGMENTS} - KEPT_BY_INIT
    assert (charged["rip"], charged["rflags"], charged["cr0"]) == (0xFFF0, 2, 0x60000010)
    assert charged["cs"] == Segment(0xF000, 0x9B, 0xFFFF, 0xFFFF0000)
    assert charged["idtr"] == Segment(0, 0, 0xFFFF, 0)
    assert (charged["dr6"], charged["dr7"]) == (0xFFFF0FF0, 0x400)
    assert charged["activity"] == Activity.WAIT_FOR_SIPI


@pytest.mark.parametrize(
    ("before", "after"),
    [(0x80010031, 0x10), (0xC0000011, 0x40000010), (0x20000000, 0x20000010)],
)
def test_init_leaves_the_caching_bits_of_cr0(before: int, after: int) -> None:
    assert charged_by(cr0=before)["cr0"] == after


def test_init_asks_for_a_cr0_that_was_not_delivered() -> None:
    flags: list[int] = []
    charged: Values = {}

    def script() -> Script:
        flags.append((yield Record(Reason.PAUSED)).flags)
        charged.update((yield Record(Reason.PAUSED, registers={"cr0": 0x40000011})).charged)
        yield Record(Reason.SHUTDOWN)

    with ScriptedEngine(script) as engine:
        vcpu = vcpu_on(engine)
        exits = vcpu.exits()
        next(exits)
        vcpu.registers.init()
        next(exits)
        vcpu.close()
    assert flags == [ReplyFlag.FETCH]
    assert charged["cr0"] == 0x40000010


def test_init_leaves_the_signature_in_edx() -> None:
    """As CPUID tells it, where the engine has it."""
    owner = Owner("cpuid")
    owner.leaves = [CpuidLeaf(0, None, 1, 2, 3, 4), CpuidLeaf(1, None, 0x60663, 0, 0, 0)]
    assert charged_by(owner=owner)["rdx"] == 0x60663
    assert charged_by()["rdx"] == 0x600


def test_init_passes_over_what_the_engine_has_not() -> None:
    owner = Owner()
    owner.engine_registers = ["rax", "rip", "cs", "activity", "tsc"]
    assert set(charged_by(owner=owner)) == {"rax", "rip", "cs", "activity"}


def test_sipi_starts_in_real_mode_at_the_vector() -> None:
    assert charged_by(0x9F) == {
        "cs": Segment(0x9F00, 0x9B, 0xFFFF, 0x9F000),
        "rip": 0,
        "activity": Activity.ACTIVE,
    }


@pytest.mark.parametrize("vector", [-1, 256])
def test_a_vector_that_sipi_cannot_carry_is_refused(vector: int) -> None:
    with pytest.raises(ValueError, match=rf"vector {vector} is not within 0..255"):
        charged_by(vector)


def test_a_cpuid_leaf_survives_the_way_to_core_and_back() -> None:
    for leaf in (CpuidLeaf(0x80000000, None, 1, 2, 3, 4), CpuidLeaf(0xD, 0, 5, 6, 7, 0xFFFFFFFF)):
        assert CpuidLeaf.of(leaf.message) == leaf
    with pytest.raises(ValueError, match="out of range"):
        _ = CpuidLeaf(1 << 32, None, 0, 0, 0, 0).message


def test_a_vcpus_cpuid_is_its_own() -> None:
    leaves = [CpuidLeaf(0, None, 1, 0, 0, 0), CpuidLeaf(1, None, 0x600, 0, 0, 0)]
    with ScriptedEngine(lambda: iter(())) as engine:  # type: ignore[arg-type, return-value]
        vcpu = vcpu_on(engine)
        vcpu.set_cpuid(iter(leaves))
        assert vcpu.cpuid() == leaves
        vcpu.close()


def test_an_msr_range_is_one_msr_both_ways_unless_it_says_more() -> None:
    message = MsrRange(0x1B).message
    assert (message.first, message.count, message.read, message.write) == (0x1B, 1, True, True)
    with pytest.raises(ValueError, match="out of range"):
        _ = MsrRange(-1).message
