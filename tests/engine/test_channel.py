"""The channel to core: greeting, refusals, state, and the end."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core_service.engine import protocol
from core_service.engine.native import build
from core_service.engine.protocol import Capability, Response, Status, Transport, Type
from dataspace.vcpu_page import (
    ABI,
    FPU_BYTES,
    HALF_BYTES,
    MAGIC,
    PAGE_BYTES,
    Reason,
    VmmHalf,
    mask,
)
from tests.engine.harness import (
    ORIGIN,
    PATIENCE,
    Engine,
    Vcpu,
    environment,
    guest,
    memory,
)


def test_hello(spawn: Callable[[], Engine], name: str) -> None:
    with spawn() as engine:
        hello = engine.hello()
    assert (hello.version, hello.page_abi, hello.engine) == (protocol.VERSION, ABI, name)
    assert 1 <= hello.max_vcpus <= protocol.VCPUS
    assert 32 <= hello.physical_bits <= 52
    assert hello.tsc_khz > 0
    names = ["rax", "rdi", "rip", "rflags", "cr0", "cr3", "cs", "tr", "idtr"]
    if Capability.LONG_MODE in hello.capabilities:
        names += ["r8", "r15", "cr4", "efer"]
    needed = mask(names)
    assert [have & want for have, want in zip(hello.registers, needed, strict=True)] == list(needed)
    for reason in (Reason.STARTUP, Reason.PORT, Reason.MMIO, Reason.HLT, Reason.PAUSED):
        assert hello.exit_reasons >> reason & 1


def test_the_page_introduces_itself(engine: Engine) -> None:
    vcpu = Vcpu(engine, Transport.PAGE, 5)
    header = struct.unpack_from("<IIII", bytes(vcpu.exit.u8))
    assert header == (MAGIC, ABI, PAGE_BYTES, 5)
    assert vcpu.exit.tsc_khz > 0
    assert vcpu.exit.exit_seq == 0
    vcpu.close()


def test_every_exit_reason_was_announced(spawn: Callable[[], Engine]) -> None:
    with spawn() as engine:
        reasons = engine.hello().exit_reasons
        with guest(engine, Transport.STREAM, "out 0x80, al; hlt") as vcpu:
            for expected in (Reason.PORT, Reason.HLT):
                vcpu.expect(expected)
                assert reasons >> expected & 1


MALFORMED = [
    pytest.param(b"", id="empty"),
    pytest.param(b"abc", id="no header"),
    pytest.param(struct.pack("<II", 99, 1), id="unknown type"),
    pytest.param(struct.pack("<II", Type.HELLO, 1), id="an engine's type"),
    pytest.param(struct.pack("<II", Type.RUN, 1), id="too short"),
    pytest.param(protocol.vcpu_packet(Type.PAUSE, 1, 0) + b"\0", id="too long"),
    pytest.param(b"\xff" * 5000, id="longer than any"),
    pytest.param(protocol.vcpu_packet(Type.CREATE_VCPU, 1, 0, 7), id="unknown transport"),
    pytest.param(protocol.vcpu_packet(Type.CREATE_VCPU, 1, 0, Transport.PAGE), id="no page"),
    pytest.param(protocol.range_packet(Type.MAP, 1, 0, 4096), id="no dataspace"),
]


@pytest.mark.parametrize("packet", MALFORMED)
def test_malformed_packet_is_refused(engine: Engine, packet: bytes) -> None:
    engine.send(packet)
    response = protocol.parse_response(engine.answer())
    assert response.status == Status.BAD_MESSAGE
    assert response.text
    with guest(engine, Transport.STREAM, "hlt") as vcpu:  # and it lives on
        vcpu.expect(Reason.HLT)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_descriptors_that_nobody_asked_for_are_closed(engine: Engine, count: int) -> None:
    fd = memory(4096)
    engine.send(protocol.vcpu_packet(Type.PAUSE, 9, 0), *[fd] * count)
    assert protocol.parse_response(engine.answer()).status == Status.BAD_MESSAGE
    assert engine.fds() == 0
    os.close(fd)


def test_unknown_map_flags_are_refused(engine: Engine) -> None:
    fd = memory(4096)
    response = engine.ask(lambda n: protocol.range_packet(Type.MAP, n, 0, 4096, 0, 4), fd)
    assert response.status == Status.BAD_MESSAGE
    assert "0x4" in response.text
    os.close(fd)


@pytest.mark.parametrize("size", [0, PAGE_BYTES - 4096])
def test_a_short_page_is_refused(engine: Engine, size: int) -> None:
    fd = memory(size)
    response = engine.ask(lambda n: protocol.vcpu_packet(Type.CREATE_VCPU, n, 0), fd)
    assert response.status == Status.BAD_MESSAGE
    assert f"{size} bytes" in response.text
    os.close(fd)


def test_a_page_that_can_shrink_is_refused(engine: Engine) -> None:
    fd = memory(PAGE_BYTES, seals=0)
    response = engine.ask(lambda n: protocol.vcpu_packet(Type.CREATE_VCPU, n, 0), fd)
    assert response.status == Status.BAD_MESSAGE
    assert "shrinking" in response.text
    os.close(fd)


def test_vcpu_of_the_same_index(engine: Engine) -> None:
    engine.need(Capability.SMP)
    Vcpu(engine, Transport.STREAM, 2)
    stream = Transport.STREAM
    response = engine.ask(lambda n: protocol.vcpu_packet(Type.CREATE_VCPU, n, 2, stream))
    assert response.status == Status.EXISTS


def test_vcpu_index_beyond_the_limit(engine: Engine) -> None:
    stream = Transport.STREAM
    response = engine.ask(lambda n: protocol.vcpu_packet(Type.CREATE_VCPU, n, 64, stream))
    assert response.status == Status.LIMIT
    assert "64" in response.text


def ask_of(engine: Engine, kind: Type, index: int) -> Response:
    if kind in {Type.PAUSE, Type.WINDOW}:
        return engine.ask(lambda n: protocol.vcpu_packet(kind, n, index))
    return engine.ask(lambda n: protocol.run_packet(kind, n, index, 0, bytes(HALF_BYTES)))


@pytest.mark.parametrize(
    "kind", [Type.RUN, Type.PAUSE, Type.WINDOW, Type.GET_STATE, Type.SET_STATE]
)
def test_vcpu_that_does_not_exist(engine: Engine, kind: Type) -> None:
    response = ask_of(engine, kind, 3)
    assert response.status == Status.NO_VCPU
    assert "3" in response.text


@pytest.mark.parametrize("kind", [Type.RUN, Type.GET_STATE, Type.SET_STATE])
def test_commands_for_a_running_vcpu_are_refused(
    engine: Engine, transport: Transport, kind: Type
) -> None:
    with guest(engine, transport, "1: jmp 1b") as vcpu:
        vcpu.start()
        if transport == Transport.PAGE:  # the run is seen in the page at any time from now on
            while vcpu.packet_status(Type.GET_STATE) != Status.NOT_STOPPED:
                pass
        assert ask_of(engine, kind, 0).status == Status.NOT_STOPPED
        vcpu.pause()
        vcpu.wait()
        assert vcpu.reason == Reason.PAUSED


@pytest.mark.parametrize("kind", [Type.GET_STATE, Type.SET_STATE])
def test_state_in_the_middle_of_an_instruction_is_refused(
    engine: Engine, transport: Transport, kind: Type
) -> None:
    with guest(engine, transport, "in al, 0x60; hlt") as vcpu:
        vcpu.expect(Reason.PORT)
        assert ask_of(engine, kind, 0).status == Status.MID_INSTRUCTION
        vcpu.expect(Reason.HLT)


def test_get_and_set_state(engine: Engine, transport: Transport) -> None:
    with guest(engine, transport, "hlt; out 0x80, al; hlt") as vcpu:
        vcpu.expect(Reason.HLT)
        state = vcpu.state("rip", "rax", "cs", "activity")
        assert state.exit_seq == vcpu.exit.exit_seq
        assert state.register("rip") == ORIGIN
        assert set(state.registers()) == {"rip", "rax", "cs", "activity"}
        charged = VmmHalf(bytearray(HALF_BYTES))
        charged.charge("rax", 0x3C)
        charged.charge("rip", ORIGIN + 1)
        engine.demand(
            lambda n: protocol.run_packet(Type.SET_STATE, n, 0, state.exit_seq, bytes(charged.u8))
        )
        assert vcpu.state("rax").register("rax") == 0x3C
        assert vcpu.expect(Reason.PORT).value == 0x3C


def test_get_and_set_state_of_the_fpu(engine: Engine, transport: Transport) -> None:
    engine.need(Capability.FPU)
    with guest(engine, transport, "hlt") as vcpu:
        vcpu.expect(Reason.HLT)
        area = bytearray(vcpu.stored("fpu").fpu)
        area[160:176] = bytes(range(16))  # XMM0: SDM vol. 1, table 10-2
        area[512] |= 0x2  # XSTATE_BV: SSE
        charged = VmmHalf(bytearray(HALF_BYTES))
        charged.charge_fpu()
        half = bytes(charged.u8)
        engine.demand(lambda n: protocol.run_packet(Type.SET_STATE, n, 0, 0, half, bytes(area)))
        assert vcpu.stored("fpu").fpu[160:176] == bytes(range(16))


@pytest.mark.parametrize("kind", [Type.RUN, Type.SET_STATE])
@pytest.mark.parametrize("size", [0, FPU_BYTES - 8, FPU_BYTES + 8])
def test_a_charged_fpu_area_has_its_size(
    engine: Engine, transport: Transport, kind: Type, size: int
) -> None:
    with guest(engine, transport, "hlt") as vcpu:
        vcpu.expect(Reason.HLT)
        charged = VmmHalf(bytearray(HALF_BYTES))
        charged.charge_fpu()
        half, area = bytes(charged.u8), bytes(size)
        response = engine.ask(lambda n: protocol.run_packet(kind, n, 0, 0, half, area))
        assert response.status == Status.BAD_MESSAGE


def test_an_fpu_area_that_is_not_charged_is_refused(engine: Engine) -> None:
    with guest(engine, Transport.STREAM, "hlt") as vcpu:
        vcpu.expect(Reason.HLT)
        half, area = bytes(HALF_BYTES), bytes(FPU_BYTES)
        response = engine.ask(lambda n: protocol.run_packet(Type.RUN, n, 0, 0, half, area))
        assert response.status == Status.BAD_MESSAGE


def test_set_state_refuses_what_a_reply_may_not_charge(engine: Engine) -> None:
    with guest(engine, Transport.STREAM, "hlt") as vcpu:
        vcpu.expect(Reason.HLT)
        charged = VmmHalf(bytearray(HALF_BYTES))
        charged.charge("activity", 4)
        response = engine.ask(
            lambda n: protocol.run_packet(Type.SET_STATE, n, 0, 0, bytes(charged.u8))
        )
        assert response.status == Status.BAD_MESSAGE
        assert "activity" in response.text


def test_state_shows_the_exit_as_it_was_published(engine: Engine, transport: Transport) -> None:
    with guest(engine, transport, "hlt") as vcpu:
        vcpu.expect(Reason.HLT)
        vcpu.reply.set_flags(0x80)
        refused = vcpu.expect(Reason.INVALID_STATE)
        state = vcpu.state("rip")
        assert (state.reason, state.detail) == (Reason.INVALID_STATE, refused.detail)


def test_state_before_the_first_run(engine: Engine) -> None:
    """The reset state, SDM vol. 3, 10.1.1."""
    vcpu = Vcpu(engine, Transport.STREAM)
    state = vcpu.state("rip", "cr0", "rflags")
    assert state.registers() == {"rip": 0xFFF0, "cr0": 0x60000010, "rflags": 2}
    assert state.exit_seq == 0


SITUATIONS = {
    "created": "hlt",
    "stopped": "hlt",
    "mid instruction": "in al, 0x60",
    "running": "1: jmp 1b",
    "exiting": "1: out 0x80, al; jmp 1b",
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_end_of_the_channel_is_the_end(
    spawn: Callable[[], Engine], transport: Transport, situation: str
) -> None:
    with spawn() as engine:
        engine.hello()
        with guest(engine, transport, SITUATIONS[situation]) as vcpu:
            if engine.offer.max_vcpus > 1:
                Vcpu(engine, transport, 1)  # one that never runs
            if situation != "created":
                vcpu.start()
            if situation in {"stopped", "mid instruction"}:
                vcpu.wait()
            engine.channel.shutdown(socket.SHUT_RDWR)
            engine.channel.close()
            assert engine.wait() == 0


def test_half_a_channel_is_the_end(spawn: Callable[[], Engine]) -> None:
    """Core that will not send any more, though it might still read."""
    with spawn() as engine:
        engine.hello()
        engine.channel.shutdown(socket.SHUT_WR)
        assert engine.wait() == 0


def test_core_that_does_not_read_holds_up_nobody_else(
    spawn: Callable[[], Engine], transport: Transport
) -> None:
    """Answers, and exits of the stream transport, fill the channel. A vCPU with a page runs on all the
    same, and the channel's end is the engine's."""
    with spawn() as engine:
        engine.hello()
        engine.need(Capability.SMP)
        with guest(engine, Transport.PAGE, "1: out 0x80, al; jmp 1b") as vcpu:
            other = Vcpu(engine, transport, 1)
            other.start()
            with pytest.raises(BlockingIOError):
                ask_without_end(engine)
            for _ in range(100):
                vcpu.expect(Reason.PORT)
            other.close()
        engine.channel.close()
        assert engine.wait() == 0


def ask_without_end(engine: Engine) -> None:
    """And never look at the answers."""
    engine.channel.setblocking(False)
    while True:
        engine.send(protocol.vcpu_packet(Type.PAUSE, 0, 1))


def test_what_a_vm_costs_the_process(engine: Engine, transport: Transport) -> None:
    """Mappings and unmappings leave nothing; a vCPU is one thread, named for `top -H`."""
    mappings = engine.mappings()
    assert [name for name in engine.threads() if name.startswith("vcpu")] == []
    with guest(engine, transport, "hlt") as vcpu:
        vcpu.expect(Reason.HLT)
        assert [name for name in engine.threads() if name.startswith("vcpu")] == ["vcpu 0"]
        fd = memory(1 << 20)
        for _ in range(10):
            engine.map(0x200000, fd, 1 << 20)
            engine.unmap(0x200000, 1 << 20)
        os.close(fd)
        assert engine.fds() == 0
        page = 1 if transport == Transport.PAGE else 0
        assert engine.mappings() == mappings + 1 + page


def test_the_process_is_confined(engine: Engine) -> None:
    status = Path(f"/proc/{engine.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "/dev/kvm" not in engine.opened().values()


def test_a_guest_that_breaks_out_writes_into_no_log(engine: Engine, variant: str) -> None:
    """What an engine prints could fill core's log, and look like core's own words."""
    if variant.endswith("-sanitized"):
        pytest.skip("sanitizers report there")
    told = {fd.name: target for fd, target in engine.opened().items()}
    assert (told["1"], told["2"]) == ("/dev/null", "/dev/null")


def test_signals_that_its_parent_blocks_are_not_blocked(spawn: Callable[[], Engine]) -> None:
    """The kick is one, and the alarm that ends an engine whose end hangs."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGALRM})
    try:
        started = spawn()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with started as engine:
        engine.hello()
        assert "SigBlk:\t0000000000000000" in Path(f"/proc/{engine.pid}/status").read_text()


def test_an_executable_by_itself_explains_itself(name: str) -> None:
    ours, theirs = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    pid = os.posix_spawn(
        build.IN_TREE / f"vmsession-{name}",
        ["engine"],
        {},
        file_actions=[(os.POSIX_SPAWN_DUP2, theirs, 2), (os.POSIX_SPAWN_DUP2, null, 3)],
    )
    os.close(theirs)
    os.close(null)
    readable, _, _ = select.select([ours], [], [], PATIENCE)
    assert readable
    assert b"descriptor 3" in os.read(ours, 4096)
    os.close(ours)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2


WITHOUT_FUTEX_WAITV = """
import ctypes, os, struct, sys
number, allow, refuse = 449, 0x7FFF0000, 0x00050000 | 38  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO, ENOSYS
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in (
    (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, refuse), (0x06, 0, 0, allow))))
program = ctypes.create_string_buffer(struct.pack("@HP", 4, ctypes.addressof(code)))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0
os.execve(sys.argv[1], sys.argv[1:], dict(os.environ))
"""


@pytest.mark.usefixtures("spawn")  # skips where this machine cannot run the engine
def test_a_system_without_futex_waitv_is_refused(name: str) -> None:
    """Before Linux 5.16, or behind a filter that does not know it: every wait would be a loop."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(PATIENCE)
    engine = str(build.IN_TREE / f"vmsession-{name}")
    with ours, theirs:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-c", WITHOUT_FUTEX_WAITV, engine],
            environment(name),
            file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), protocol.CHANNEL_FD)],
        )
        last = protocol.parse_response(ours.recv(protocol.PACKET_LIMIT))
        ours.close()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert last.status == Status.KERNEL
    assert last.text == "futex_waitv, of Linux 5.16 and later: Function not implemented"


def test_kvm_that_cannot_be_opened_says_what_to_do() -> None:
    """In a mount namespace without /dev/kvm; only root may make one."""
    if os.geteuid() != 0:
        pytest.skip("needs root to hide /dev/kvm")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(PATIENCE)
    hide = 'mount -t tmpfs none /dev && exec "$0"'
    with ours, theirs:
        pid = os.posix_spawn(
            "/usr/bin/unshare",
            ["unshare", "--mount", "sh", "-c", hide, str(build.IN_TREE / "vmsession-kvm")],
            dict(os.environ),
            file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)],
        )
        packet = ours.recv(protocol.PACKET_LIMIT)
        assert protocol.header(packet)[0] == Type.FAILED
        last = protocol.parse_response(packet)
        assert "/dev/kvm" in last.text
        assert "No such file or directory" in last.text
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_exits_wait_for_core_without_being_lost(engine: Engine) -> None:
    """Stream exits of many vCPUs arrive each once, in order."""
    with guest(engine, Transport.STREAM, "1: out 0x80, al; inc eax; jmp 1b") as vcpu:
        for number in range(100):
            exit_ = vcpu.expect(Reason.PORT)
            assert exit_.value == number & 0xFF
            assert exit_.exit_seq == 2 + number
