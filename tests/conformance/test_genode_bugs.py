"""The bugs that Genode's vm_session had (issue 3111 and after), as tests: none of them here, on any
engine. `docs/genode.md` lists them all."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from vmsession.v1 import vcpu_pb2, vm_session_pb2

from dataspace._page import wait_any
from dataspace.registers import Segment
from dataspace.vcpu_page import Activity, Reason
from tests.conformance.genode import COUNT_AND_HALT, SPIN, attachments, refused
from tests.conformance.machine import DATA, HOLE, ORIGIN, PAGE, PATIENCE, Machine, awaited, expect
from tests.integration.running_core import RunningCore, Stubs
from vmm_client import Connection, connect
from vmm_client.errors import Refused
from vmm_client.vcpu import Vcpu


def run_by_rpc(client: Connection, vcpu: Vcpu, sequence: int) -> None:
    """Run a vCPU for one of its exits, by RPC."""
    request = vm_session_pb2.RunRequest(
        vcpu=vcpu.name, reply=vcpu_pb2.Reply(sequence=sequence, wanted=["rip"])
    )
    client.rpc.call(client.vm_sessions.Run, request)


def test_an_extra_run_does_not_enter_the_guest(client: Connection, machine: Machine) -> None:
    """Bug 1: spurious wake-ups re-entered the guest. A run that is for an exit before does nothing."""
    vcpu = machine.guest(COUNT_AND_HALT)
    halted = expect(vcpu, Reason.HLT).sequence
    for sequence in range(1, halted):
        assert refused(partial(run_by_rpc, client, vcpu, sequence)).reason == "NOT_STOPPED"
    assert machine.word(DATA) == 1
    vcpu.registers.activity = Activity.ACTIVE
    assert expect(vcpu, Reason.HLT).sequence == halted + 1
    assert machine.word(DATA) == 2


def test_one_exit_is_run_once_whoever_runs_it(
    client: Connection, machine: Machine, transport: str
) -> None:
    """Bug 1, with both ways at once: of a run by page and one by RPC for the same exit, one counts."""
    if transport == "stream":
        pytest.skip("a stream ends with a reply that comes late")
    vcpu = machine.guest("again: inc dword ptr [0x4000]\nout 1, al\njmp again")
    expect(vcpu, Reason.PORT)
    with ThreadPoolExecutor(1) as other:
        for turn in range(2, 202):
            sequence = vcpu.exit.sequence
            by_rpc = other.submit(run_by_rpc, client, vcpu, sequence)
            vcpu.run()
            assert awaited(vcpu, Reason.PORT).sequence == sequence + 1
            assert by_rpc.exception(PATIENCE) is None or isinstance(by_rpc.exception(), Refused)
            assert machine.word(DATA) == turn


def test_closing_one_session_leaves_the_other(client: Connection, engine: str) -> None:
    """Bug 2: with two sessions of one client, closing one freed the vCPUs of the other."""
    with client.create_session(engine) as kept, client.create_ram(Machine.RAM) as ram:
        with client.create_session(engine) as closed, client.create_ram(Machine.RAM) as other:
            gone = Machine(closed, other, stream=False).guest(COUNT_AND_HALT)
            machine = Machine(kept, ram, stream=False)
            vcpu = machine.guest(COUNT_AND_HALT)
            expect(gone, Reason.HLT)
            expect(vcpu, Reason.HLT)
        vcpu.registers.activity = Activity.ACTIVE
        expect(vcpu, Reason.HLT)
        assert machine.word(DATA) == 2


def test_a_detach_over_several_attachments_takes_exactly_its_range(
    client: Connection, machine: Machine
) -> None:
    """Bug 3: a range that covers several regions was not detached whole."""
    session = machine.session
    with client.create_ram(4 * PAGE) as ram:
        for page in range(4):
            session.attach(ram, HOLE + 2 * page * PAGE, offset=page * PAGE, size=PAGE)
        pieces = session.detach(HOLE, 8 * PAGE)
        assert [piece.gpa for piece in pieces] == [HOLE + 2 * page * PAGE for page in range(4)]
        assert [attached.gpa for attached in session.memory.attachments()] == [0]
        vcpu = machine.guest(f"mov al, [{HOLE + 6 * PAGE}]\nhlt")
        assert expect(vcpu, Reason.MMIO).address == HOLE + 6 * PAGE


def test_startup_comes_when_the_vcpu_is_whole(machine: Machine) -> None:
    """Bug 6: STARTUP was handled before the vCPU object was complete, with more vCPUs than cores.
    Sixteen, each run by a thread of its own as soon as it is created."""
    machine.require("feature:smp")
    machine.load(f"lock inc dword ptr [{DATA}]\nhlt")

    def start(index: int) -> tuple[Reason, int]:
        vcpu = machine.vcpu(index)
        rip = vcpu.registers.rip
        machine.enter(vcpu, "protected")
        return expect(vcpu, Reason.HLT).reason, rip

    with ThreadPoolExecutor(16) as threads:
        started = list(threads.map(start, range(16), timeout=PATIENCE))
    assert started == [(Reason.HLT, 0xFFF0)] * 16
    assert machine.word(DATA) == 16


def test_two_pauses_keep_what_the_vmm_wrote(machine: Machine) -> None:
    """Bug 7: two pauses in a row overwrote the state that the VMM had written."""
    vcpu = machine.guest("hlt\nmov [0x4000], ebx\nhlt")
    vcpu.want("rbx", "rip")
    expect(vcpu, Reason.HLT)
    vcpu.registers.rbx = 0x12345678
    vcpu.pause()
    vcpu.pause()
    expect(vcpu, Reason.PAUSED)
    vcpu.pause()
    vcpu.pause()
    expect(vcpu, Reason.PAUSED)
    assert vcpu.registers.rbx == 0x12345678
    vcpu.registers.rip = ORIGIN + 1
    vcpu.pause()
    expect(vcpu, Reason.PAUSED)
    assert vcpu.registers.rip == ORIGIN + 1
    expect(vcpu, Reason.HLT)
    assert machine.word(DATA) == 0x12345678


def test_memory_is_freed_under_a_running_vcpu(client: Connection, engine: str) -> None:
    """Bug 9: buffers were freed before the kernel's vCPU that used them."""
    with client.create_session(engine) as session, client.create_ram(Machine.RAM) as ram:
        vcpu = Machine(session, ram, stream=False).guest(SPIN)
        vcpu.run()
        ram.close()
        fault = awaited(vcpu, Reason.MEMORY_FAULT)
        assert fault.address & -PAGE == ORIGIN
        assert session.memory.attachments() == []


def test_a_session_is_closed_under_vcpus_that_run(core: RunningCore, stubs: Stubs) -> None:
    """Bug 10: a vCPU that runs on another CPU was destroyed under itself. On every engine: vCPUs
    that spin, that are halted and that stand in the middle of an instruction."""
    with connect(str(core.socket)) as client:
        for engine in client.engines():
            if not engine.available:
                continue
            with client.create_ram(Machine.RAM) as ram, client.create_session(engine.name) as own:
                machine = Machine(own, ram, stream=False)
                sources = (SPIN, "hlt", "out 1, al", SPIN)
                for index, source in enumerate(sources[: engine.capabilities.max_vcpus]):
                    vcpu = machine.guest(source, index=index, at=ORIGIN + 0x100 * index)
                    vcpu.run()
                own.close()
                assert stubs.totals().sessions == 0
                assert core.engine_pids() == []
                assert "killed" not in core.log()


def test_an_exit_to_a_handler_that_is_gone_waits_for_the_next(machine: Machine) -> None:
    """Bug 11: an exit was delivered to a handler that no longer existed."""
    vcpu = machine.guest("out 1, al\nout 2, al\nhlt")
    first = vcpu.exits()
    assert next(first).address == 1
    vcpu.pause()
    first.close()
    vcpu.run()
    waiter, seen = vcpu.awaited()
    assert wait_any((waiter,), (seen,), PATIENCE) == 0  # the exit is there, and nobody took it
    handled: list[tuple[Reason, int]] = []

    def serve() -> None:
        for exit_ in vcpu.exits():
            handled.append((exit_.reason, exit_.address))
            if exit_.reason is Reason.HLT:
                return

    later = threading.Thread(target=serve)
    later.start()
    later.join(PATIENCE)
    assert handled == [(Reason.PAUSED, 0), (Reason.PORT, 2), (Reason.HLT, 0)]


def test_a_state_that_cannot_be_entered_stops_the_vcpu_alone(machine: Machine) -> None:
    """Bug 12: a failed VM entry stopped the kernel. Here the reply is refused, and a better one runs."""
    vcpu = machine.guest(COUNT_AND_HALT)
    expect(vcpu, Reason.HLT)
    vcpu.registers.cr0 = 0x80000000  # paging without protection
    vcpu.turn(PATIENCE)
    assert vcpu.exit.reason is Reason.INVALID_STATE
    vcpu.registers.activity = Activity.ACTIVE
    expect(vcpu, Reason.HLT)
    assert machine.word(DATA) == 2


def test_a_vm_is_restarted_at_once(client: Connection, engine: str) -> None:
    """Bug 12: an early restart failed. Ten machines, each ended as soon as it had begun."""
    for _ in range(10):
        with client.create_session(engine) as session, client.create_ram(Machine.RAM) as ram:
            machine = Machine(session, ram, stream=False)
            expect(machine.guest(COUNT_AND_HALT), Reason.HLT)
            assert machine.word(DATA) == 1


def test_closing_a_session_unmaps_everything(client: Connection, engine: str) -> None:
    """Bug 13: what was mapped at a session's end outlived the address space."""
    with client.create_ram(Machine.RAM) as ram:
        with client.create_session(engine) as session:
            expect(Machine(session, ram, stream=False).guest(COUNT_AND_HALT), Reason.HLT)
            assert attachments(client, ram) == 1
        assert attachments(client, ram) == 0
        assert int.from_bytes(ram.read(DATA, 4), "little") == 1
        ram.close()
        assert attachments(client, ram) == 0


def test_detached_memory_is_not_seen_any_more(client: Connection, machine: Machine) -> None:
    """Bug 14: stale translations after memory went away. The guest reads on, and sees what is there."""
    vcpu = machine.guest(f"again: mov eax, [{HOLE}]\nmov [{DATA}], eax\nout 1, al\njmp again")
    with client.create_ram(PAGE) as first, client.create_ram(PAGE) as second:
        first.write(0, b"\x11" * 4)
        second.write(0, b"\x22" * 4)
        for ram, value in ((first, 0x11111111), (second, 0x22222222), (first, 0x11111111)):
            machine.session.attach(ram, HOLE)
            expect(vcpu, Reason.PORT)
            assert machine.word(DATA) == value
            machine.session.detach(HOLE, PAGE)
            read = expect(vcpu, Reason.MMIO)
            assert read.address == HOLE
            read.reply(0x33333333)
            expect(vcpu, Reason.PORT)
            assert machine.word(DATA) == 0x33333333


def test_a_guest_that_breaks_down_harms_nobody(client: Connection, engine: str) -> None:
    """Bug 15: an invalid exit crashed the kernel. A triple fault is an exit, another VM goes on, and the
    vCPU lives again after a reset."""
    with client.create_session(engine) as session, client.create_ram(Machine.RAM) as ram:
        other = Machine(session, ram, stream=False)
        bystander = other.guest(COUNT_AND_HALT)
        expect(bystander, Reason.HLT)
        with client.create_session(engine) as broken, client.create_ram(Machine.RAM) as memory:
            machine = Machine(broken, memory, stream=False)
            vcpu = machine.guest("ud2")
            vcpu.registers.idtr = Segment(0, 0, 0, 0)
            expect(vcpu, Reason.SHUTDOWN)
            expect(vcpu, Reason.SHUTDOWN)
            machine.load(COUNT_AND_HALT)
            vcpu.registers.init()
            vcpu.registers.activity = Activity.ACTIVE
            machine.enter(vcpu, "protected")
            expect(vcpu, Reason.HLT)
            assert machine.word(DATA) == 1
        bystander.registers.activity = Activity.ACTIVE
        expect(bystander, Reason.HLT)
        assert other.word(DATA) == 2


def test_vcpus_are_charged_and_too_many_are_an_error(client: Connection, machine: Machine) -> None:
    """Bug 18: unaccounted memory, a fixed vCPU count, ids that ran out unnoticed."""
    session, most = machine.session, machine.session.capabilities.max_vcpus

    def used() -> tuple[int, int]:
        (mine,) = (one for one in client.sessions() if one.name == session.name)
        return mine.ram.used, mine.capabilities.used

    ram, capabilities = used()
    for index in range(most):
        session.create_vcpu(index)
        assert used() == (ram + (index + 1) * 3 * PAGE, capabilities + index + 1)
    beyond = refused(lambda: session.create_vcpu(most))
    assert beyond.reason in ("ENGINE_LIMIT", "INVALID_ARGUMENT")
    assert str(most) in beyond.message or str(most - 1) in beyond.message
    assert used() == (ram + most * 3 * PAGE, capabilities + most)


def test_a_vmm_survives_an_invalid_dataspace(client: Connection, machine: Machine) -> None:
    """Bug 19: Invalid_dataspace ended the VMM."""
    with client.create_ram(PAGE) as ram:
        assert refused(lambda: machine.session.attach(ram, HOLE + 1)).reason == "INVALID_RANGE"
        bad = refused(lambda: machine.session.attach(ram, HOLE, offset=2 * PAGE)).reason
        assert bad == "INVALID_DATASPACE"
    assert refused(lambda: machine.session.attach(ram, HOLE)).reason == "NOT_FOUND"
    expect(machine.guest(COUNT_AND_HALT), Reason.HLT)


def test_freeing_a_dataspace_races_with_detaching_it(client: Connection, machine: Machine) -> None:
    """Bug 20: a dataspace was destroyed while it was being detached. Both succeed, whoever is first,
    beside a vCPU that runs."""
    vcpu = machine.guest(SPIN)
    vcpu.run()
    with ThreadPoolExecutor(2) as threads:
        for _ in range(40):
            ram = client.create_ram(PAGE)
            machine.session.attach(ram, HOLE)
            freed = threads.submit(ram.close)
            detached = threads.submit(machine.session.detach, HOLE, PAGE)
            freed.result(PATIENCE)
            detached.result(PATIENCE)
            assert not ram.held
            assert [one.gpa for one in machine.session.memory.attachments()] == [0]
    vcpu.pause()
    awaited(vcpu, Reason.PAUSED)
