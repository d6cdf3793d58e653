"""CPUID tables and MSR filters: what the channel refuses, and what every engine that has them does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from core_service.engine import protocol
from core_service.engine.protocol import (
    CPUID_LEAVES,
    MSR_RANGE,
    MSR_RANGES,
    Capability,
    CpuidLeaf,
    MsrRange,
    Response,
    Status,
    Transport,
    Type,
)
from dataspace.vcpu_page import ExitFlag, Reason
from tests.engine.harness import Engine, Vcpu, guest

SYSENTER_CS = 0x174


def refused(response: Response, status: Status, *told: str) -> None:
    """With a text that tells these."""
    assert response.status == status, response
    for word in told:
        assert word in response.text


def test_an_engine_without_cpuid_says_so(engine: Engine, transport: Transport) -> None:
    engine.lack(Capability.CPUID)
    Vcpu(engine, transport).close()
    refused(engine.set_cpuid([]), Status.UNSUPPORTED, engine.offer.engine)
    refused(
        engine.ask(lambda number: protocol.vcpu_packet(Type.GET_CPUID, number, 0)),
        Status.UNSUPPORTED,
        engine.offer.engine,
    )


def test_cpuid_of_no_vcpu(engine: Engine) -> None:
    refused(engine.set_cpuid([], 5), Status.NO_VCPU, "5")
    response = engine.ask(lambda number: protocol.vcpu_packet(Type.GET_CPUID, number, 5))
    refused(response, Status.NO_VCPU, "5")


def test_a_cpuid_table_is_what_the_guest_sees(engine: Engine, transport: Transport) -> None:
    engine.need(Capability.CPUID)
    with engine.ram():
        vcpu = Vcpu(engine, transport)
        offered = engine.cpuid()
        assert 1 < len(offered) <= CPUID_LEAVES
        changed = [leaf for leaf in offered if leaf.function != 0x80000002]
        changed.append(CpuidLeaf(0x80000002, None, 0x11, 0x22, 0x33, 0x44))
        assert engine.set_cpuid(changed).status == Status.OK
        assert sorted(engine.cpuid(), key=str) == sorted(changed, key=str)
        vcpu.close()


def test_a_cpuid_table_comes_before_the_first_run(engine: Engine, transport: Transport) -> None:
    engine.need(Capability.CPUID)
    with guest(engine, transport, "1: jmp 1b") as vcpu:
        table = engine.cpuid()
        refused(engine.set_cpuid(table), Status.STARTED, "0")
        vcpu.start()
        while vcpu.packet_status(Type.GET_STATE) != Status.NOT_STOPPED:
            pass
        refused(engine.set_cpuid(table), Status.STARTED, "0")
        vcpu.pause()
        vcpu.wait()
        assert engine.cpuid() == table


@pytest.mark.parametrize(
    ("first", "second"), [(None, None), (0, 0), (None, 3)], ids=["leaf", "sub-leaf", "both"]
)
def test_no_leaf_twice(
    engine: Engine, transport: Transport, first: int | None, second: int | None
) -> None:
    engine.need(Capability.CPUID)
    Vcpu(engine, transport).close()
    table = [CpuidLeaf(0x7, index, 1, 0, 0, 0) for index in (first, second)]
    refused(engine.set_cpuid(table), Status.BAD_MESSAGE, "0x7", "twice")


def test_a_table_has_its_limit(engine: Engine, transport: Transport) -> None:
    engine.need(Capability.CPUID)
    Vcpu(engine, transport).close()
    packet = bytearray(protocol.cpuid_packet(7, 0, []))
    packet[12:16] = (CPUID_LEAVES + 1).to_bytes(4, "little")
    refused(engine.ask(numbered(packet)), Status.BAD_MESSAGE, "161", "160")
    packet = bytearray(protocol.cpuid_packet(7, 0, [CpuidLeaf(1, None, 0, 0, 0, 0)]))
    packet[16 + 8] = 0x2
    refused(engine.ask(numbered(packet)), Status.BAD_MESSAGE, "flags 0x2")


def numbered(packet: bytearray) -> Callable[[int], bytes]:
    """The packet with the request's number."""
    return lambda number: bytes(packet[:4]) + number.to_bytes(4, "little") + bytes(packet[8:])


def test_an_engine_without_a_filter_says_so(engine: Engine) -> None:
    engine.lack(Capability.MSR_FILTER)
    refused(engine.filter_msrs(), Status.UNSUPPORTED, engine.offer.engine)


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (MsrRange(0x10, 0, True, True), "0 MSRs"),
        (MsrRange(0x10, MSR_RANGE + 1, True, True), "4097"),
        (MsrRange(0xFFFFFFFF, 2, True, True), "beyond 32 bits"),
        (MsrRange(0x10, 1, False, False), "flags 0"),
    ],
    ids=["empty", "long", "wraps", "nothing"],
)
def test_a_filter_is_checked_as_a_whole(engine: Engine, bad: MsrRange, told: str) -> None:
    engine.need(Capability.MSR_FILTER)
    good = MsrRange(SYSENTER_CS, 1, True, True)
    refused(engine.filter_msrs(good, bad), Status.BAD_MESSAGE, told)
    source = f"mov ecx, {SYSENTER_CS}; rdmsr; hlt"
    with guest(engine, Transport.PAGE, source) as vcpu:
        vcpu.expect(Reason.HLT)


def test_a_filter_has_its_limit(engine: Engine) -> None:
    engine.need(Capability.MSR_FILTER)
    most = [MsrRange(0x10 * number, 1, True, False) for number in range(1, MSR_RANGES + 1)]
    packet = bytearray(protocol.msr_filter_packet(7, most))
    packet[8:12] = (MSR_RANGES + 1).to_bytes(4, "little")
    refused(engine.ask(numbered(packet)), Status.BAD_MESSAGE, "17", "16")
    assert engine.filter_msrs(*most).status == Status.OK


def test_a_filter_of_a_running_vm(engine: Engine, transport: Transport) -> None:
    """Replaced as a whole; reads and writes apart."""
    engine.need(Capability.MSR_FILTER)
    source = f"1: mov ecx, {SYSENTER_CS}; rdmsr; wrmsr; jmp 1b"
    with guest(engine, transport, source) as vcpu:
        vcpu.start()
        assert engine.filter_msrs(MsrRange(SYSENTER_CS, 1, True, False)).status == Status.OK
        vcpu.wait()
        for _ in range(2):
            assert (vcpu.reason, vcpu.exit.address) == (Reason.MSR, SYSENTER_CS)
            assert vcpu.exit.flags & ExitFlag.READ
            vcpu.run()
        assert engine.filter_msrs(MsrRange(SYSENTER_CS, 1, False, True)).status == Status.OK
        vcpu.reply.set_value(0x1234)
        exit_ = vcpu.expect(Reason.MSR)
        assert not exit_.flags & ExitFlag.READ
        assert exit_.value == 0x1234
        assert engine.filter_msrs().status == Status.OK
        vcpu.start()
        vcpu.pause()
        vcpu.wait()
        assert vcpu.reason == Reason.PAUSED
