"""Registers, each alone: what is charged is what is read, and nothing else changes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from core_service.engine.protocol import Transport
from dataspace.registers import Segment
from dataspace.vcpu_page import ALL_SCALARS, ALL_SEGMENTS, Reason, mask, names
from tests.engine.harness import PATIENCE, Engine, Vcpu, guest
from tests.register_values import VALUES

MOVING = {"tsc", "tsc_offset"}


@pytest.fixture
def halted(engine: Engine) -> Iterator[Vcpu]:
    """In long mode, at a HLT."""
    with guest(engine, Transport.PAGE, "hlt", "long") as vcpu:
        vcpu.expect(Reason.HLT)
        yield vcpu


def everything(vcpu: Vcpu) -> dict[str, int | Segment]:
    """All registers that do not move by themselves."""
    wanted = [name for name in names(ALL_SCALARS, ALL_SEGMENTS) if name not in MOVING]
    return vcpu.fetch(*wanted)


@pytest.mark.parametrize("register", VALUES)
def test_a_charged_register_and_no_other(halted: Vcpu, register: str) -> None:
    before = everything(halted)
    if register not in before:
        pytest.skip(f"this machine has no {register}")
    halted.charge(**{register: VALUES[register]})
    halted.pause()
    halted.expect(Reason.PAUSED)
    after = everything(halted)
    expected = before | {register: VALUES[register]}
    if register == "rip":
        expected["activity"] = 0  # the VMM's explicit advance wakes
    assert after == expected


@pytest.mark.parametrize("seed", range(10))
def test_charged_registers_and_no_others(halted: Vcpu, seed: int) -> None:
    """Some at once, and some more in the reply after it."""
    chance = random.Random(seed)
    before = everything(halted)
    known = [name for name in VALUES if name in before]
    expected = dict(before)
    for _ in range(2):
        charged = {name: VALUES[name] for name in chance.sample(known, chance.randrange(2, 12))}
        halted.charge(**charged)
        halted.pause()
        halted.expect(Reason.PAUSED)
        expected |= charged
        if "rip" in charged:
            expected["activity"] = 0
    assert everything(halted) == expected


def test_all_that_hello_names_is_delivered(spawn: Callable[[], Engine]) -> None:
    """But for what the host's CPU does not have."""
    optional = {"tsc_aux", "xss", "xcr0", "tsc_offset"}
    with spawn() as engine:
        offered = engine.hello().registers
        with engine.ram():
            vcpu = Vcpu(engine, Transport.STREAM)
            vcpu.expect(Reason.STARTUP)
            missing = set(names(*offered)) - set(vcpu.exit.registers())
            assert missing <= optional


def test_nothing_beyond_wanted_is_delivered(halted: Vcpu) -> None:
    for name in ("rax", "cr0", "dr7", "lstar", "cs", "interruptibility"):
        halted.fetch(name)
        assert halted.exit.masks == mask([name])


def test_the_time_stamp_counter_counts(halted: Vcpu) -> None:
    first, second = halted.scalar("tsc"), halted.scalar("tsc")
    assert 0 < first < second


def counts_from_creation(vcpu: Vcpu) -> bool:
    """A VM's counter begins at 0; KVM without hardware virtualization (kvm_pvm) ignores offsets."""
    return vcpu.scalar("tsc") < PATIENCE * 10**10


def test_the_time_stamp_counter_can_be_set(halted: Vcpu) -> None:
    """By its value and by its offset, which moves it by as much."""
    if not counts_from_creation(halted):
        pytest.skip("this host's KVM shows guests its own counter")
    halted.charge(tsc=1 << 50)
    halted.expect(Reason.HLT)
    set_to = halted.scalar("tsc")
    assert 1 << 50 <= set_to < (1 << 50) + (1 << 40)
    offset = halted.scalar("tsc_offset")
    halted.charge(tsc_offset=offset + (1 << 51))
    halted.expect(Reason.HLT)
    assert halted.scalar("tsc_offset") == offset + (1 << 51)
    assert set_to + (1 << 51) <= halted.scalar("tsc") < set_to + (1 << 51) + (1 << 40)


def test_task_priority_is_cr8(halted: Vcpu) -> None:
    halted.charge(cr8=9)
    halted.expect(Reason.HLT)
    assert halted.scalar("cr8") == 9
    halted.expect(Reason.HLT)
    assert halted.scalar("cr8") == 9


def test_registers_charged_before_a_refused_reply_are_kept(halted: Vcpu) -> None:
    halted.charge(rax=0x77)
    halted.pause()
    halted.expect(Reason.PAUSED)
    halted.charge(lstar=1 << 47)
    halted.expect(Reason.INVALID_STATE)
    assert halted.scalar("rax") == 0x77


def test_a_refused_reply_does_not_wake(halted: Vcpu) -> None:
    halted.charge(cr8=16, activity=0)
    halted.expect(Reason.INVALID_STATE)
    halted.expect(Reason.HLT)


@pytest.mark.parametrize(
    ("register", "value"),
    [("cr8", 16), ("efer", 1 << 20), ("gdtr", Segment(0, 0, 0x10000, 0)), ("cr4", 1 << 63)],
)
def test_values_that_no_cpu_takes_are_refused(
    halted: Vcpu, register: str, value: int | Segment
) -> None:
    before = everything(halted)
    halted.charge(**{register: value})
    halted.expect(Reason.INVALID_STATE)
    assert everything(halted) == before
