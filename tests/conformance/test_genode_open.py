"""What is still open in Genode's vm_session, as tests. `docs/genode.md` lists it."""

from __future__ import annotations

from functools import partial

from dataspace.vcpu_page import Reason
from tests.conformance.genode import attachments, refused
from tests.conformance.machine import HOLE, PAGE, PATIENCE, Machine, expect
from vmm_client import Connection


def test_a_range_that_was_freed_is_free_and_recorded_again(
    client: Connection, machine: Machine
) -> None:
    """Open there: attaching over a reserved region maps it untracked. Here nothing stays reserved."""
    for _ in range(3):
        with client.create_ram(PAGE) as ram:
            machine.session.attach(ram, HOLE)
            assert attachments(client, ram) == 1
        assert [one.gpa for one in machine.session.memory.attachments()] == [0]


def test_attaching_again_otherwise_is_a_conflict(client: Connection, machine: Machine) -> None:
    """Open there: attaching again with another offset or a larger size maps beyond the record."""
    session = machine.session
    with client.create_ram(4 * PAGE) as ram:
        session.attach(ram, HOLE, offset=PAGE, size=PAGE)
        session.attach(ram, HOLE, offset=PAGE, size=PAGE)
        for offset, size in ((0, PAGE), (2 * PAGE, PAGE), (PAGE, 2 * PAGE), (PAGE, 0)):
            conflict = refused(partial(session.attach, ram, HOLE, offset, size))
            assert conflict.reason == "REGION_CONFLICT"
        vcpu = machine.guest(f"mov al, [{HOLE + PAGE}]\nhlt")
        assert expect(vcpu, Reason.MMIO).address == HOLE + PAGE


def test_a_partial_detach_takes_no_more_even_at_address_0(machine: Machine) -> None:
    """Open there: a partial detach removes whole regions, and near address 0 it wraps."""
    session = machine.session
    (first,) = session.detach(0, PAGE)
    assert (first.gpa, first.size) == (0, PAGE)
    (middle,) = session.detach(4 * PAGE, PAGE)
    assert (middle.gpa, middle.size) == (4 * PAGE, PAGE)
    left = [(one.gpa, one.end) for one in session.memory.attachments()]
    assert left == [(PAGE, 4 * PAGE), (5 * PAGE, Machine.RAM)]
    vcpu = machine.guest(f"mov al, [{4 * PAGE}]\nmov al, [16]\nhlt")
    assert expect(vcpu, Reason.MMIO).address == 4 * PAGE
    assert expect(vcpu, Reason.MMIO).address == 16
    expect(vcpu, Reason.HLT)


def test_a_huge_detach_walks_no_holes(client: Connection, machine: Machine) -> None:
    """Open there: one huge detach walks holes page by page and stalls core. All that the engine can
    address, in the time that a call may take."""
    whole = 1 << machine.session.capabilities.physical_bits
    with client.create_ram(PAGE) as ram:
        machine.session.attach(ram, whole - PAGE)
        pieces = machine.session.detach(0, whole)
        assert [piece.gpa for piece in pieces] == [0, whole - PAGE]
    assert client.totals().sessions >= 1


def test_what_is_attached_read_only_is_not_written(client: Connection, machine: Machine) -> None:
    """Open there: a sealed dataspace attaches writable. A read-only attachment is not written by the
    guest, also not when the same memory was writable before."""
    with client.create_ram(PAGE) as ram:
        machine.session.attach(ram, HOLE)
        machine.session.detach(HOLE, PAGE)
        machine.session.attach(ram, HOLE, read_only=True)
        vcpu = machine.guest(f"mov byte ptr [{HOLE}], 7\nhlt")
        vcpu.turn(PATIENCE)
        assert vcpu.exit.reason in (Reason.MMIO, Reason.MEMORY_FAULT)
        assert vcpu.exit.address == HOLE
        assert ram.read(0, 1) == b"\0"
