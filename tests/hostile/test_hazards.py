"""What peers on shared memory can do to each other by the kernel's own means, one at a time."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from vmsession.v1 import dataspace_pb2, vm_session_pb2

from core_service.engine.native import build
from core_service.engine.protocol import Transport
from dataspace.registers import SCALAR_INDEX
from dataspace.vcpu_page import (
    KICK_SEQ_AT,
    PAGE_BYTES,
    RUN_SEQ_AT,
    SCALAR_AT,
    VMM_HALF,
    Reason,
    VmmHalf,
)
from tests.conftest import expected
from tests.engine.harness import PATIENCE, Engine, environment, guest
from tests.hostile.machine import FdChannel, Machine
from tests.hostile.scribbler import compiled
from tests.integration.running_core import RunningCore, Stubs

FUTURE_WRITE = 0x10  # F_SEAL_FUTURE_WRITE, linux/fcntl.h
ROUNDS = 20_000

on_every_engine = pytest.mark.parametrize("name", expected())


@pytest.fixture(scope="module")
def library() -> Iterator[ctypes.CDLL]:
    """The scribbler's."""
    with compiled() as path:
        loaded = ctypes.CDLL(os.fspath(path))
        loaded.torn.restype = ctypes.c_uint64
        yield loaded


@pytest.fixture
def engine(name: str) -> Iterator[Engine]:
    """As installed."""
    with Engine(build.IN_TREE / f"vmsession-{name}", environment(name)) as started:
        started.hello()
        yield started
    assert started.status == 0


def swallow(library: ctypes.CDLL, page: mmap.mmap, at: int) -> None:
    """Take him away who sleeps on a word of the VMM's half, or is about to."""
    word = ctypes.c_uint32.from_buffer(page, VMM_HALF + at)
    end = time.monotonic() + PATIENCE
    while not library.swallow(ctypes.byref(word)):
        assert time.monotonic() < end, "nobody sleeps there"


@on_every_engine
def test_a_run_whose_wake_up_is_swallowed(engine: Engine, library: ctypes.CDLL) -> None:
    """The engine does not sleep for longer than it can bear to be forgotten."""
    with guest(engine, Transport.PAGE, "1: hlt; jmp 1b") as vcpu:
        vcpu.expect(Reason.HLT)
        assert vcpu.map
        swallow(library, vcpu.map, RUN_SEQ_AT)
        vcpu.expect(Reason.HLT)


@on_every_engine
def test_a_pause_whose_wake_up_is_swallowed(engine: Engine, library: ctypes.CDLL) -> None:
    with guest(engine, Transport.PAGE, "1: jmp 1b") as vcpu:
        vcpu.start()
        assert vcpu.map
        swallow(library, vcpu.map, KICK_SEQ_AT)
        vcpu.pause()
        vcpu.wait()
        assert vcpu.reason == Reason.PAUSED


def test_registers_are_written_whole(library: ctypes.CDLL) -> None:
    """A reader sees one value or the other, never a part of both, nor the zero that some writers begin
    with."""
    one, other = 0x0102030405060708, 0xF1F2F3F4F5F6F7F8
    with mmap.mmap(-1, PAGE_BYTES) as page:
        half = VmmHalf(page, VMM_HALF)
        half.charge("rax", one)
        stop = ctypes.c_uint32(0)
        torn: list[int] = []

        def look(word: ctypes.c_uint64) -> None:
            values = ctypes.c_uint64(one), ctypes.c_uint64(other)
            torn.append(library.torn(ctypes.byref(word), *values, ctypes.byref(stop)))

        at = VMM_HALF + SCALAR_AT + 8 * SCALAR_INDEX["rax"]
        reader = threading.Thread(target=look, args=(ctypes.c_uint64.from_buffer(page, at),))
        reader.start()
        for _ in range(ROUNDS):
            half.charge("rax", other)
            half.charge("rax", one)
        stop.value = 1
        reader.join()
        del reader
        half.release()
    assert torn == [0]


@on_every_engine
def test_an_owner_who_seals_his_memory_against_writing(core: RunningCore, name: str) -> None:
    """The kernel refuses later writable mappings: it is attached read-only then, and where it was
    attached before nothing changes. A vCPU page cannot be sealed."""
    stubs = Stubs(core.socket)
    fds = FdChannel(stubs, Path(core.socket))
    machine = Machine(stubs, name, b"\xf4")
    vcpu = machine.add_vcpu()
    memory, page = fds.collect(machine.memory), fds.collect(vcpu)
    assert memory is not None
    assert page is not None
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, FUTURE_WRITE)
    with pytest.raises(PermissionError):
        fcntl.fcntl(page, fcntl.F_ADD_SEALS, FUTURE_WRITE)
    for fd in (memory, page):
        os.close(fd)
    request = vm_session_pb2.AttachRequest(
        session=machine.session, dataspace=machine.memory, gpa=1 << 20
    )
    assert not stubs.vm.Attach(request).attachment.writable
    first, second = stubs.vm.ListAttachments(
        vm_session_pb2.ListAttachmentsRequest(session=machine.session)
    ).attachments
    assert (first.writable, second.writable) == (True, False)
    machine.begin(vcpu)
    stubs.vm.Run(vm_session_pb2.RunRequest(vcpu=vcpu))
    read = dataspace_pb2.ReadDataspaceRequest(name=machine.memory, offset=0x1000, size=1)
    assert stubs.dataspaces.ReadDataspace(read).data == b"\xf4"
    core.must_agree()
    machine.end()
    fds.close()
    stubs.close()
