"""Run and pause: no wake-up is lost and none invented, from any thread, by page and by RPC.

First one interleaving after the other, then all at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from vmsession.v1 import vcpu_pb2, vm_session_pb2

from dataspace.vcpu_page import Reason
from tests.conformance.machine import DATA, ORIGIN, PATIENCE, Machine, awaited, expect
from vmm_client import Connection
from vmm_client.errors import Refused
from vmm_client.vcpu import Vcpu

SPIN = f"again: inc dword ptr [{DATA}]\njmp again"
HALT = f"again: hlt\ninc dword ptr [{DATA}]\njmp again"
TALK = f"again: inc dword ptr [{DATA}]\nout 1, al\njmp again"
RUNS = 300
Ask = Callable[[Connection, Vcpu], None]


def by_library(client: Connection, vcpu: Vcpu) -> None:
    """The library's way, which is the page where there is one."""
    vcpu.pause()


def by_rpc(client: Connection, vcpu: Vcpu) -> None:
    """Through core, as any client may."""
    client.rpc.call(client.vm_sessions.Pause, vm_session_pb2.PauseRequest(vcpu=vcpu.name))


every_way = pytest.mark.parametrize("ask", [by_library, by_rpc])


@every_way
def test_a_pause_reaches_a_guest_that_never_exits(
    client: Connection, machine: Machine, ask: Ask
) -> None:
    vcpu = machine.guest(SPIN)
    vcpu.want("rip")
    for _ in range(20):
        vcpu.run()
        ask(client, vcpu)
        awaited(vcpu, Reason.PAUSED)
        assert vcpu.registers.rip in range(ORIGIN, ORIGIN + 8)


@every_way
def test_a_pause_before_the_run_comes_before_the_guest(
    client: Connection, machine: Machine, ask: Ask
) -> None:
    """Also where it was asked for more than once, and exactly once."""
    vcpu = machine.guest(TALK)
    for pauses in (1, 2, 7):
        count = machine.word(DATA)
        for _ in range(pauses):
            ask(client, vcpu)
        expect(vcpu, Reason.PAUSED)
        assert machine.word(DATA) == count
        expect(vcpu, Reason.PORT)
        assert machine.word(DATA) == count + 1


@every_way
def test_a_pause_before_the_first_run_waits_for_the_second(
    client: Connection, machine: Machine, ask: Ask
) -> None:
    vcpu = machine.session.create_vcpu()
    ask(client, vcpu)
    expect(vcpu, Reason.STARTUP)
    machine.load(TALK)
    machine.enter(vcpu, "protected")
    expect(vcpu, Reason.PAUSED)
    assert machine.word(DATA) == 0
    expect(vcpu, Reason.PORT)


@every_way
def test_a_halted_vcpu_is_paused_and_halts_again(
    client: Connection, machine: Machine, ask: Ask
) -> None:
    vcpu = machine.guest(HALT)
    for _ in range(3):
        assert expect(vcpu, Reason.HLT).ip == ORIGIN
        ask(client, vcpu)
        expect(vcpu, Reason.PAUSED)
    assert machine.word(DATA) == 0


@every_way
def test_a_pause_waits_for_the_end_of_the_instruction(
    client: Connection, machine: Machine, ask: Ask
) -> None:
    """The answer to what the guest reads is not lost, with COMPLETE nor without it."""
    vcpu = machine.guest(f"in eax, 0x10\nmov [{DATA}], eax\nin eax, 0x10\nmov [{DATA}], eax\nhlt")
    vcpu.want("rax", "rip")
    for complete, value in ((False, 0x11223344), (True, 0x55667788)):
        exit_ = expect(vcpu, Reason.PORT)
        exit_.reply(value)
        ask(client, vcpu)
        if complete:
            exit_.complete()
            expect(vcpu, Reason.COMPLETED)
            assert vcpu.registers.rax & 0xFFFFFFFF == value
        expect(vcpu, Reason.PAUSED)
        assert vcpu.registers.rax & 0xFFFFFFFF == value
    expect(vcpu, Reason.HLT)
    assert machine.word(DATA) == 0x55667788


def test_pauses_of_both_ways_are_one(client: Connection, machine: Machine) -> None:
    """A pause by page and one by RPC that wait together are answered together."""
    vcpu = machine.guest(TALK)
    expect(vcpu, Reason.PORT)
    by_rpc(client, vcpu)
    vcpu.pause()
    expect(vcpu, Reason.PAUSED)
    expect(vcpu, Reason.PORT)
    vcpu.pause()
    by_rpc(client, vcpu)
    expect(vcpu, Reason.PAUSED)
    expect(vcpu, Reason.PORT)
    assert machine.word(DATA) == 3


def test_a_pause_while_the_exit_is_fetched_is_still_owed(machine: Machine) -> None:
    """Asked between PAUSED and a fetch of registers there."""
    vcpu = machine.guest(TALK)
    vcpu.pause()
    expect(vcpu, Reason.PAUSED)
    vcpu.pause()
    assert vcpu.fetch("rip").rip == ORIGIN
    expect(vcpu, Reason.PAUSED)
    expect(vcpu, Reason.PORT)


def test_a_refused_reply_keeps_the_pause(client: Connection, machine: Machine) -> None:
    vcpu = machine.guest(TALK)
    expect(vcpu, Reason.PORT)
    by_rpc(client, vcpu)
    vcpu.registers.cr0 = 0x80000000  # paging without protection: refused behind the instruction
    vcpu.turn(PATIENCE)
    assert vcpu.exit.reason is Reason.INVALID_STATE
    expect(vcpu, Reason.PAUSED)
    assert machine.word(DATA) == 1


def test_run_and_pause_from_any_thread(client: Connection, machine: Machine) -> None:
    """Whoever runs it, whoever pauses it, whoever waits for it: three threads that change places."""
    vcpu = machine.guest(SPIN)
    with ThreadPoolExecutor(3) as threads:
        for turn in range(60):
            threads.submit(vcpu.run).result(PATIENCE)
            waiting = threads.submit(awaited, vcpu, Reason.PAUSED)
            threads.submit(by_rpc if turn % 2 else by_library, client, vcpu).result(PATIENCE)
            waiting.result(PATIENCE)


def test_every_run_gives_one_exit(client: Connection, machine: Machine) -> None:
    """While three threads pause it as often as the guest exits by itself: the guest went on once for
    each of its own exits, and after the last PAUSED none comes that nobody asked for."""
    vcpu = machine.guest(TALK)
    permits = threading.Semaphore(0)
    over = threading.Event()

    def keep_asking(ask: Ask) -> None:
        while permits.acquire(timeout=PATIENCE) and not over.is_set():
            ask(client, vcpu)

    seen = dict.fromkeys((Reason.PORT, Reason.PAUSED), 0)
    with ThreadPoolExecutor(3) as threads:
        asking = [threads.submit(keep_asking, ask) for ask in (by_library, by_library, by_rpc)]
        try:
            while seen[Reason.PORT] < RUNS:
                exit_ = vcpu.turn(PATIENCE)
                assert exit_ is not None
                seen[exit_.reason] += 1
                ahead = machine.word(DATA) - seen[Reason.PORT]
                # It may be paused between the counting and the port.
                assert ahead == 0 or (ahead == 1 and exit_.reason is Reason.PAUSED), seen
                if exit_.reason is Reason.PORT:
                    permits.release()
        finally:
            over.set()
            permits.release(len(asking))
        for one in asking:
            one.result(PATIENCE)
    assert 0 < seen[Reason.PAUSED] <= RUNS
    last = vcpu.pause()
    expect(vcpu, Reason.PAUSED)
    assert vcpu.pauses_acknowledged >= last
    for _ in range(3):
        expect(vcpu, Reason.PORT)


def test_a_guest_is_run_by_both_ways_in_turns(
    client: Connection, machine: Machine, transport: str
) -> None:
    """Neither way loses the reply of the other, and a run that comes late is refused."""
    if transport == "stream":
        pytest.skip("a stream's runs are all RPC")
    vcpu = machine.guest(f"again: in eax, 0x10\nadd [{DATA}], eax\njmp again")
    expect(vcpu, Reason.PORT)
    for turn in range(100):
        sequence = vcpu.exit.sequence
        if turn % 2:
            vcpu.exit.reply(turn)
            expect(vcpu, Reason.PORT)
        else:
            reply = vcpu_pb2.Reply(sequence=sequence, data=turn.to_bytes(4, "little"))
            request = vm_session_pb2.RunRequest(vcpu=vcpu.name, reply=reply)
            client.rpc.call(client.vm_sessions.Run, request)
            followed(vcpu)
            with pytest.raises(Refused, match="NOT_STOPPED"):
                client.rpc.call(client.vm_sessions.Run, request)
        assert vcpu.exit.sequence == sequence + 1
    assert machine.word(DATA) == sum(range(100))


def followed(vcpu: Vcpu) -> None:
    """Take the exit that a run by RPC gave."""
    waiter, seen = vcpu.awaited()
    assert waiter.wait(seen, PATIENCE) != seen
    assert vcpu.poll() is not None
