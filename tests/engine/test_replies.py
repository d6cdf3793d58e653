"""What a hostile or mistaken VMM may write: refused with a reason, and nothing is executed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import pytest

from core_service.engine.protocol import Status, Transport, Type
from dataspace.vcpu_page import (
    HALF_BYTES,
    MASK_AT,
    REPLY_INJECTION_AT,
    REPLY_WRITTEN_COUNT_AT,
    RUN_SEQ_AT,
    VMM_HALF,
    Activity,
    Reason,
    VmmHalf,
)
from tests.engine.harness import Engine, guest, take_over


def word(at: int, value: int) -> Callable[[VmmHalf], None]:
    """A reply that is wrong in one 32-bit word."""

    def spoil(reply: VmmHalf) -> None:
        reply.u32[at // 4] = value

    return spoil


def empty_range(reply: VmmHalf) -> None:
    reply.written([(0x1000, 0)])


def wrapping_range(reply: VmmHalf) -> None:
    reply.written([(0x1000, 0x1000), (2**64 - 0x1000, 0x2000)])


def unknown_activity(reply: VmmHalf) -> None:
    reply.charge("activity", max(Activity) + 1)


def flags(value: int) -> Callable[[VmmHalf], None]:
    return lambda reply: reply.set_flags(value)


def fetch_and_charge(reply: VmmHalf) -> None:
    reply.set_flags(0x2)
    reply.charge("rax", 1)


# enum vcpu_refusal
FLAGS, INJECTION, COUNT, RANGE, REGISTERS, ACTIVITY, STATE = range(1, 8)

MALFORMED: Final = [
    pytest.param(flags(0x80), FLAGS, id="unknown flag"),
    pytest.param(flags(0x4), FLAGS, id="fault at a port"),
    pytest.param(flags(0x3), FLAGS, id="fetch and complete"),
    pytest.param(fetch_and_charge, FLAGS, id="fetch and charge"),
    pytest.param(word(REPLY_INJECTION_AT, 0x20), INJECTION, id="not valid, not zero"),
    pytest.param(word(REPLY_INJECTION_AT, 0x80001020), INJECTION, id="reserved bit"),
    pytest.param(word(REPLY_INJECTION_AT, 0x80000120), INJECTION, id="reserved type"),
    pytest.param(word(REPLY_INJECTION_AT, 0x80000820), INJECTION, id="interrupt with error code"),
    pytest.param(word(REPLY_INJECTION_AT, 0x80000320), INJECTION, id="exception 32"),
    pytest.param(word(REPLY_WRITTEN_COUNT_AT, 9), COUNT, id="nine ranges"),
    pytest.param(word(REPLY_WRITTEN_COUNT_AT, 0x80000000), COUNT, id="many ranges"),
    pytest.param(empty_range, RANGE, id="empty range"),
    pytest.param(wrapping_range, RANGE, id="range that wraps"),
    pytest.param(word(MASK_AT + 4, 1 << 31), REGISTERS, id="register 63"),
    pytest.param(word(MASK_AT + 8, 1 << 10), REGISTERS, id="segment 10"),
    pytest.param(unknown_activity, ACTIVITY, id="unknown activity"),
]


@pytest.mark.parametrize(("spoil", "refusal"), MALFORMED)
def test_malformed_reply_is_refused(
    engine: Engine, transport: Transport, spoil: Callable[[VmmHalf], None], refusal: int
) -> None:
    """The exit stays to be answered: the next reply is for the same instruction."""
    with guest(engine, transport, "in al, 0x60; out 0x80, al; hlt") as vcpu:
        asked = vcpu.expect(Reason.PORT)
        record = (asked.address, asked.size, asked.count, asked.flags)
        vcpu.reply.set_value(0xEE)
        spoil(vcpu.reply)
        refused = vcpu.expect(Reason.INVALID_STATE)
        assert refused.detail == refusal
        assert (refused.address, refused.size, refused.count, refused.flags) == record
        if transport == Transport.STREAM:
            vcpu.reply.u8[:] = bytes(HALF_BYTES)
        vcpu.reply.set_value(0x11)
        assert vcpu.expect(Reason.PORT).value == 0x11
        vcpu.expect(Reason.HLT)


def test_a_state_that_cannot_be_entered_is_refused(engine: Engine, transport: Transport) -> None:
    """Paging without protection: SDM vol. 3, 2.5."""
    with guest(engine, transport, "hlt; out 0x80, al; hlt") as vcpu:
        vcpu.expect(Reason.HLT)
        vcpu.charge(cr0=0x80000010, rip=0x1001)
        assert vcpu.expect(Reason.INVALID_STATE).detail == STATE
        vcpu.charge(cr0=0x11, rip=0x1001)
        vcpu.expect(Reason.PORT)


def test_a_stale_run_is_ignored(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "hlt") as vcpu:
        sequence = vcpu.expect(Reason.HLT).exit_seq
        for stale in (0, 1, sequence - 1, sequence, sequence + 2, 2**32 - 1):
            vcpu.reply.u32[RUN_SEQ_AT // 4] = stale
            # answered by the vCPU's own thread, which looks at the word: it is still stopped there
            assert vcpu.state("rip").exit_seq == sequence
        assert vcpu.expect(Reason.HLT).exit_seq == sequence + 1


def test_a_run_for_another_exit_is_refused(engine: Engine, transport: Transport) -> None:
    with guest(engine, transport, "hlt") as vcpu:
        sequence = vcpu.expect(Reason.HLT).exit_seq
        for stale in (sequence - 1, sequence + 1):
            response = engine.ask(vcpu.packet(Type.RUN, stale))
            assert response.status == Status.NOT_STOPPED
            assert f"exit {sequence}, not at {stale}" in response.text
        assert vcpu.expect(Reason.HLT).exit_seq == sequence + 1


def test_the_channel_runs_a_vcpu_with_a_page(engine: Engine) -> None:
    with guest(engine, Transport.PAGE, "1: out 0x80, al; jmp 1b") as vcpu:
        sequence = vcpu.expect(Reason.PORT).exit_seq
        engine.demand(vcpu.packet(Type.RUN, sequence))
        vcpu.wait()
        assert vcpu.exit.exit_seq == sequence + 1
        vcpu.expect(Reason.PORT)
        assert vcpu.exit.exit_seq == sequence + 2


@pytest.mark.parametrize("seed", range(3))
def test_garbage_in_every_word_while_it_runs(engine: Engine, seed: int) -> None:
    """The engine survives it, and serves the next VMM: core takes the vCPU over by the channel."""
    chance = random.Random(seed)
    source = "1: in al, 0x60; out 0x80, al; mov eax, [0x100000]; inc dword ptr [0x2000]; jmp 1b"
    with guest(engine, Transport.PAGE, source) as vcpu:
        assert vcpu.map
        for _ in range(300):
            vcpu.start()
            at = VMM_HALF + 4 * chance.randrange(HALF_BYTES // 4)
            run_seq = VMM_HALF + RUN_SEQ_AT if chance.random() < 0.2 else at
            for place in (at, run_seq, chance.randrange(0, VMM_HALF, 4)):
                vcpu.map[place : place + 4] = chance.randbytes(4)
            vcpu.map[VMM_HALF + 0x40 : VMM_HALF + HALF_BYTES] = chance.randbytes(HALF_BYTES - 0x40)
            vcpu.map[VMM_HALF + 8 : VMM_HALF + 12] = chance.randbytes(4)  # kick_seq
        vcpu.map[VMM_HALF : VMM_HALF + HALF_BYTES] = bytes(HALF_BYTES)
        take_over(engine, vcpu.index)
