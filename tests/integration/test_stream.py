"""The stream transport: gRPC alone suffices."""

from __future__ import annotations

import grpc
import pytest
from vmsession.v1 import dataspace_pb2, vcpu_pb2, vm_session_pb2

from tests.integration.engines import on_every_engine
from tests.integration.refusals import error_info, reason_of
from tests.integration.running_core import Stubs
from tests.integration.stream_vmm import ORIGIN, Stream, StreamVmm
from tests.integration.waiting import eventually

# mov al,'A'; out 42,al; in al,43; out 44,al; hlt
TALKER = bytes.fromhex("b041 e642 e443 e644 f4")
# mov ax,0x1234; mov [es:0x10], ax; mov bx, [es:0x20]; hlt  (es base = 0xa0000, where nothing is)
MMIO = bytes.fromhex("b83412 26a31000 268b1e2000 f4")
ENDLESS = bytes.fromhex("ebfe")
# inc al; out 42,al; again
COUNTER = bytes.fromhex("fec0 e642 ebfa")


@on_every_engine
def test_every_exit_is_answered(stubs: Stubs, engine: str) -> None:
    vmm = StreamVmm(stubs, engine, TALKER)
    vmm.start()
    wrote = vmm.next()
    assert (wrote.reason, wrote.address, wrote.size, wrote.count, wrote.read, wrote.data) == (
        vcpu_pb2.EXIT_REASON_PORT,
        0x42,
        1,
        1,
        False,
        b"A",
    )
    assert wrote.mid_instruction
    vmm.reply(vcpu_pb2.Reply(sequence=wrote.sequence))
    reads = vmm.next()
    assert (reads.address, reads.size, reads.read, reads.data) == (0x43, 1, True, b"")
    vmm.reply(vcpu_pb2.Reply(sequence=reads.sequence, data=b"\x99", wanted=["rax", "rip", "cs"]))
    echo = vmm.next()
    assert (echo.address, echo.data) == (0x44, b"\x99")
    vmm.reply(vcpu_pb2.Reply(sequence=echo.sequence))
    halt = vmm.next()
    assert halt.reason == vcpu_pb2.EXIT_REASON_HLT
    assert (halt.ip, halt.instruction_length) == (ORIGIN + 8, 1)
    assert halt.state.rax & 0xFF == 0x99
    assert halt.state.rip == ORIGIN + 8
    assert halt.state.cs.limit == 0xFFFF
    assert not halt.state.HasField("rbx")
    assert vmm.end_stream() == grpc.StatusCode.OK


@on_every_engine
def test_mmio(stubs: Stubs, engine: str) -> None:
    vmm = StreamVmm(stubs, engine, MMIO)
    vmm.reply(vcpu_pb2.Reply())
    startup = vmm.next()
    video = vcpu_pb2.Segment(selector=0xA000, base=0xA0000, limit=0xFFFF, attributes=0x93)
    code = vcpu_pb2.Segment(selector=0, base=0, limit=0xFFFF, attributes=0x9B)
    vmm.reply(
        vcpu_pb2.Reply(
            sequence=startup.sequence,
            state=vcpu_pb2.VcpuState(rip=ORIGIN, cs=code, es=video),
            wanted=["rbx"],
        )
    )
    wrote = vmm.next()
    assert (wrote.reason, wrote.address, wrote.data) == (
        vcpu_pb2.EXIT_REASON_MMIO,
        0xA0010,
        b"\x34\x12",
    )
    vmm.reply(vcpu_pb2.Reply(sequence=wrote.sequence))
    reads = vmm.next()
    assert (reads.address, reads.size, reads.read) == (0xA0020, 2, True)
    vmm.reply(vcpu_pb2.Reply(sequence=reads.sequence, data=b"\xcd\xab"))
    halt = vmm.next()
    assert halt.reason == vcpu_pb2.EXIT_REASON_HLT
    assert halt.state.rbx & 0xFFFF == 0xABCD


@on_every_engine
def test_a_guest_that_never_exits_is_paused(stubs: Stubs, engine: str) -> None:
    vmm = StreamVmm(stubs, engine, ENDLESS)
    vmm.start()
    stubs.vm.Pause(vm_session_pb2.PauseRequest(vcpu=vmm.vcpu))
    paused = vmm.next()
    assert paused.reason == vcpu_pb2.EXIT_REASON_PAUSED
    assert not paused.mid_instruction
    # stopped: two requests coalesce, and the next run gives one PAUSED
    stubs.vm.Pause(vm_session_pb2.PauseRequest(vcpu=vmm.vcpu))
    stubs.vm.Pause(vm_session_pb2.PauseRequest(vcpu=vmm.vcpu))
    vmm.reply(vcpu_pb2.Reply(sequence=paused.sequence, wanted=["rip"]))
    again = vmm.next()
    assert (again.reason, again.state.rip) == (vcpu_pb2.EXIT_REASON_PAUSED, ORIGIN)
    vmm.reply(vcpu_pb2.Reply(sequence=again.sequence))
    eventually(lambda: _runs(stubs, vmm.vcpu))  # the reply goes another way than the question
    stubs.vm.Pause(vm_session_pb2.PauseRequest(vcpu=vmm.vcpu))
    assert vmm.next().reason == vcpu_pb2.EXIT_REASON_PAUSED


@on_every_engine
def test_code_that_the_vmm_writes_is_executed(stubs: Stubs, engine: str) -> None:
    vmm = StreamVmm(stubs, engine, TALKER)
    vmm.start()
    assert vmm.next().data == b"A"
    vmm.write(ORIGIN, bytes.fromhex("b05a e642 f4"))  # mov al,'Z'; out 42,al; hlt
    state = vcpu_pb2.VcpuState(rip=ORIGIN)
    vmm.reply(vcpu_pb2.Reply(sequence=2, state=state))
    assert vmm.next().data == b"Z"


@on_every_engine
def test_state_is_read_and_written_by_rpc(stubs: Stubs, engine: str) -> None:
    vmm = StreamVmm(stubs, engine, TALKER)
    vmm.reply(vcpu_pb2.Reply())
    startup = vmm.next()
    reset = stubs.vm.GetVcpuState(vm_session_pb2.GetVcpuStateRequest(vcpu=vmm.vcpu)).state
    assert reset.rip == 0xFFF0
    assert reset.cs.base == 0xFFFF0000
    assert reset.rflags == 2
    stubs.vm.UpdateVcpuState(
        vm_session_pb2.UpdateVcpuStateRequest(
            vcpu=vmm.vcpu, state=vcpu_pb2.VcpuState(rbx=0x1122334455667788, r15=7)
        )
    )
    read = stubs.vm.GetVcpuState(
        vm_session_pb2.GetVcpuStateRequest(vcpu=vmm.vcpu, wanted=["rbx", "r15", "rcx"])
    )
    assert (read.state.rbx, read.state.r15, read.state.rcx) == (0x1122334455667788, 7, 0)
    assert read.sequence == startup.sequence


@on_every_engine
def test_a_stale_reply_does_not_run_the_vcpu(stubs: Stubs, engine: str) -> None:
    vmm = StreamVmm(stubs, engine, TALKER)
    vmm.start()
    wrote = vmm.next()
    with pytest.raises(grpc.RpcError) as refused:
        stubs.vm.Run(
            vm_session_pb2.RunRequest(
                vcpu=vmm.vcpu, reply=vcpu_pb2.Reply(sequence=wrote.sequence - 1)
            )
        )
    assert reason_of(refused.value) == "NOT_STOPPED"
    stubs.vm.Run(vm_session_pb2.RunRequest(vcpu=vmm.vcpu))
    assert vmm.next().address == 0x43


@on_every_engine
def test_a_new_stream_takes_over_at_the_last_exit(stubs: Stubs, engine: str) -> None:
    vmm = StreamVmm(stubs, engine, TALKER)
    vmm.start()
    wrote = vmm.next()
    second = Stream(stubs, vmm.vcpu)
    assert second.next() == wrote
    with pytest.raises(grpc.RpcError) as ended:
        vmm.next()
    assert reason_of(ended.value) == "TAKEN_OVER"
    assert error_info(ended.value).metadata["name"] == vmm.vcpu
    second.reply(vcpu_pb2.Reply(sequence=wrote.sequence))
    assert second.next().address == 0x43
    assert second.end() == grpc.StatusCode.OK


@on_every_engine
def test_a_stream_that_is_cancelled_is_followed_at_once(stubs: Stubs, engine: str) -> None:
    """Over and over, with a run under way each time: nobody is in the way, and no exit is lost."""
    vmm = StreamVmm(stubs, engine, COUNTER)
    vmm.start()
    stream, last = vmm.stream, vmm.next()
    for _ in range(50):
        stream.reply(vcpu_pb2.Reply(sequence=last.sequence))
        stream.cancel()
        stream = Stream(stubs, vmm.vcpu)
        standing = stream.next()
        assert standing.sequence - last.sequence in {0, 1}
        stream.reply(vcpu_pb2.Reply(sequence=standing.sequence))
        last = stream.next()
        assert last.sequence == standing.sequence + 1
    assert stream.end() == grpc.StatusCode.OK


@on_every_engine
def test_deleting_the_session_ends_the_stream_in_order(stubs: Stubs, engine: str) -> None:
    vmm = StreamVmm(stubs, engine, ENDLESS)
    vmm.start()
    stubs.vm.DeleteSession(vm_session_pb2.DeleteSessionRequest(name=vmm.session))
    assert vmm.end_stream() == grpc.StatusCode.OK
    stubs.dataspaces.FreeDataspace(dataspace_pb2.FreeDataspaceRequest(name=vmm.dataspace))


@on_every_engine
def test_a_page_vcpu_is_not_served_by_a_stream(stubs: Stubs, engine: str) -> None:
    session = stubs.vm.CreateSession(vm_session_pb2.CreateSessionRequest(engine=engine)).session
    vcpu = stubs.vm.CreateVcpu(
        vm_session_pb2.CreateVcpuRequest(
            session=session.name, transport=vm_session_pb2.TRANSPORT_PAGE, page_abi=2
        )
    ).vcpu
    with pytest.raises(grpc.RpcError) as refused:
        list(
            stubs.vm.HandleExits(
                iter([vm_session_pb2.HandleExitsRequest(open=vcpu.name)]), timeout=9
            )
        )
    assert reason_of(refused.value) == "WRONG_TRANSPORT"


def _runs(stubs: Stubs, vcpu: str) -> bool:
    """Whether its state is refused since it runs."""
    try:
        stubs.vm.GetVcpuState(vm_session_pb2.GetVcpuStateRequest(vcpu=vcpu))
    except grpc.RpcError as error:
        return reason_of(error) == "NOT_STOPPED"
    return False
