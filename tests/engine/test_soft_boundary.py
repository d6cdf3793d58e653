"""Boundaries that only the software CPU comes to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core_service.engine.protocol import Transport
from dataspace.vcpu_page import ExitFlag, Injection, InjectType, Reason, ReplyFlag
from tests.engine.harness import ORIGIN, PAGE, Engine, Vcpu, guest

pytestmark = pytest.mark.parametrize("variant", ["soft"], indirect=True)

TABLES = 0x300000  # a device: who fetches an instruction walks them, which is in its middle
NOWHERE = 0x500000
ENTRIES = {TABLES: TABLES + PAGE | 0x23, TABLES + PAGE + 4: NOWHERE | 0x23}  # accessed, present


@pytest.fixture
def fetching(engine: Engine, transport: Transport) -> Iterator[Vcpu]:
    """A vCPU that fetches an instruction, about to be told that it is nowhere."""
    with guest(engine, transport, "nop; hlt") as vcpu:
        vcpu.charge(cr0=0x80000011, cr3=TABLES)
        assert vcpu.expect(Reason.MMIO).address == TABLES
        vcpu.reply.set_value(ENTRIES[TABLES])
        assert vcpu.expect(Reason.MMIO).flags & ExitFlag.MID_INSTRUCTION
        vcpu.reply.set_value(ENTRIES[vcpu.exit.address])
        yield vcpu


def fetch_again(vcpu: Vcpu) -> None:
    """To the same end, whatever is walked for it."""
    while vcpu.run().reason == Reason.MMIO:
        vcpu.reply.set_value(ENTRIES[vcpu.exit.address])
    assert vcpu.reason == Reason.MEMORY_FAULT, vcpu.describe()


def test_registers_owed_are_in_force_at_the_fault(fetching: Vcpu) -> None:
    fetching.charge(rbx=7, rflags=0x202)
    fetching.want("rip", "rbx")
    exit_ = fetching.expect(Reason.MEMORY_FAULT)
    assert exit_.address == NOWHERE
    assert exit_.registers() == {"rip": ORIGIN, "rbx": 7}
    assert exit_.flags & ExitFlag.IF
    fetching.charge(rbx=8)
    fetch_again(fetching)
    assert fetching.exit.register("rbx") == 8


def test_a_fault_tells_what_became_of_the_injection(fetching: Vcpu) -> None:
    fetching.reply.inject(InjectType.INTERRUPT, 0x20)  # the interrupt flag is clear
    assert fetching.expect(Reason.MEMORY_FAULT).injection == Injection.NOT_TAKEN
    fetch_again(fetching)
    assert fetching.exit.injection == Injection.NONE


@pytest.mark.parametrize("flag", [ReplyFlag.COMPLETE, ReplyFlag.STEP])
def test_a_fault_is_the_stop_that_was_asked_for(fetching: Vcpu, flag: ReplyFlag) -> None:
    fetching.reply.set_flags(flag)
    fetching.expect(Reason.MEMORY_FAULT)
    fetching.charge(cr0=0x11, rip=ORIGIN)
    fetching.expect(Reason.HLT)


def test_a_state_that_cannot_be_entered_comes_before_the_fault(fetching: Vcpu) -> None:
    """Paging without protection: SDM vol. 3, 2.5."""
    fetching.charge(cr0=0x80000010)
    fetching.reply.inject(InjectType.NMI, 2)
    refused = fetching.expect(Reason.INVALID_STATE)
    assert refused.injection == Injection.NOT_TAKEN
    fetching.charge(cr0=0x11)
    fetching.expect(Reason.HLT)
