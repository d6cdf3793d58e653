"""CPUID, MSR filter and FPU by RPC: what the engine has works, what it lacks is UNSUPPORTED."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from vmsession.v1 import core_pb2, vcpu_pb2, vm_session_pb2

from tests.integration.engines import on_every_engine
from tests.integration.refusals import error_info
from tests.integration.running_core import Stubs
from tests.integration.stream_vmm import StreamVmm
from tests.integration.waiting import eventually

HLT = bytes.fromhex("f4")
# mov ecx,0x277; rdmsr; hlt
RDMSR_PAT = bytes.fromhex("66b977020000 0f32 f4")
TWO_HLTS = bytes.fromhex("f4 f4")
ONE = bytes.fromhex("0000 0000 0000 0080 ff3f")  # 1.0, 80 bits
PI = bytes.fromhex("35c2 6821 a2da 0fc9 0040")
# in the XSAVE area: SDM vol. 1, table 10-2, and 13.4.2
ST0 = slice(32, 42)
XSTATE_BV = 512
X87 = 1


def has(stubs: Stubs, engine: str, feature: str) -> bool:
    for known in stubs.core.ListEngines(core_pb2.ListEnginesRequest()).engines:
        if known.name == engine:
            return feature in known.capabilities.features
    raise AssertionError(engine)


def refused(call: Callable[[], Any]) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return error_info(caught.value)


def must_be_unsupported(call: Callable[[], Any], engine: str, feature: str) -> None:
    info = refused(call)
    assert info.reason == "UNSUPPORTED"
    assert dict(info.metadata) == {"engine": engine, "feature": feature}


@on_every_engine
def test_a_cpuid_table(stubs: Stubs, engine: str) -> None:
    vmm = StreamVmm(stubs, engine, HLT)
    reads = vm_session_pb2.GetVcpuCpuidRequest(vcpu=vmm.vcpu)
    writes = vm_session_pb2.SetVcpuCpuidRequest(vcpu=vmm.vcpu)
    if not has(stubs, engine, "cpuid"):
        must_be_unsupported(lambda: stubs.vm.GetVcpuCpuid(reads), engine, "cpuid")
        must_be_unsupported(lambda: stubs.vm.SetVcpuCpuid(writes), engine, "cpuid")
        return
    table = list(stubs.vm.GetVcpuCpuid(reads).leaves)
    assert table[0].function == 0
    table[0].eax = 7
    kept = [leaf for leaf in table if leaf.function <= 7 or leaf.function >= 0x80000000]
    writes.leaves.extend(kept)
    stubs.vm.SetVcpuCpuid(writes)
    assert [leaf.function for leaf in stubs.vm.GetVcpuCpuid(reads).leaves] == [
        leaf.function for leaf in kept
    ]
    vmm.reply(vcpu_pb2.Reply())
    vmm.next()
    assert refused(lambda: stubs.vm.SetVcpuCpuid(writes)).reason == "ALREADY_STARTED"


@on_every_engine
def test_an_msr_filter(stubs: Stubs, engine: str) -> None:
    vmm = StreamVmm(stubs, engine, RDMSR_PAT)
    pat = vm_session_pb2.MsrRange(first=0x277, count=1, read=True)
    names = vm_session_pb2.SetMsrFilterRequest(session=vmm.session, ranges=[pat])
    if not has(stubs, engine, "msr_filter"):
        must_be_unsupported(lambda: stubs.vm.SetMsrFilter(names), engine, "msr_filter")
        return
    stubs.vm.SetMsrFilter(names)
    vmm.start()
    reads = vmm.next()
    assert (reads.reason, reads.address, reads.read) == (vcpu_pb2.EXIT_REASON_MSR, 0x277, True)
    data = (0x1122334455667788).to_bytes(8, "little")
    vmm.reply(vcpu_pb2.Reply(sequence=reads.sequence, data=data, wanted=["rax", "rdx"]))
    halt = vmm.next()
    assert (halt.state.rdx, halt.state.rax & 0xFFFFFFFF) == (0x11223344, 0x55667788)


@on_every_engine
def test_fpu_state(stubs: Stubs, engine: str) -> None:
    vmm = StreamVmm(stubs, engine, TWO_HLTS)
    if not has(stubs, engine, "fpu"):
        charged = vcpu_pb2.Reply(state=vcpu_pb2.VcpuState(fpu=b"x"))
        request = vm_session_pb2.RunRequest(vcpu=vmm.vcpu, reply=charged)
        must_be_unsupported(lambda: stubs.vm.Run(request), engine, "fpu")
        return
    vmm.start(wanted=["fpu"])
    halt = vmm.next()
    everything = vm_session_pb2.GetVcpuStateRequest(vcpu=vmm.vcpu)
    assert stubs.vm.GetVcpuState(everything).state.fpu == halt.state.fpu
    area = bytearray(halt.state.fpu)
    area[XSTATE_BV] |= X87
    area[ST0] = PI
    by_rpc = vm_session_pb2.UpdateVcpuStateRequest(vcpu=vmm.vcpu)
    by_rpc.state.fpu = bytes(area[:-1])
    info = refused(lambda: stubs.vm.UpdateVcpuState(by_rpc))
    assert (info.reason, info.metadata["field"]) == ("INVALID_ARGUMENT", "fpu")
    assert info.metadata["limit"] == f"the engine's {len(area)} bytes"
    by_rpc.state.fpu = bytes(area)
    stubs.vm.UpdateVcpuState(by_rpc)
    only = vm_session_pb2.GetVcpuStateRequest(vcpu=vmm.vcpu, wanted=["fpu"])
    assert stubs.vm.GetVcpuState(only).state.fpu[ST0] == PI
    area[ST0] = ONE
    state = vcpu_pb2.VcpuState(fpu=bytes(area), rip=halt.ip + 1)
    vmm.reply(vcpu_pb2.Reply(sequence=halt.sequence, state=state))
    second = vmm.next()
    assert (second.ip, second.state.fpu[ST0]) == (halt.ip + 1, ONE)


@on_every_engine
def test_fpu_state_of_a_vcpu_with_a_page(stubs: Stubs, engine: str) -> None:
    if not has(stubs, engine, "fpu"):
        pytest.skip(f"engine {engine} moves no FPU state")
    session = stubs.vm.CreateSession(vm_session_pb2.CreateSessionRequest(engine=engine)).session
    vcpu = stubs.vm.CreateVcpu(
        vm_session_pb2.CreateVcpuRequest(
            session=session.name, transport=vm_session_pb2.TRANSPORT_PAGE, page_abi=2
        )
    ).vcpu.name
    stubs.vm.Run(vm_session_pb2.RunRequest(vcpu=vcpu))  # which stops at STARTUP
    reads = vm_session_pb2.GetVcpuStateRequest(vcpu=vcpu, wanted=["fpu"])
    eventually(lambda: stopped(stubs, reads))
    area = bytearray(stubs.vm.GetVcpuState(reads).state.fpu)
    area[XSTATE_BV] |= X87
    area[ST0] = PI
    state = vcpu_pb2.VcpuState(fpu=bytes(area))
    stubs.vm.UpdateVcpuState(vm_session_pb2.UpdateVcpuStateRequest(vcpu=vcpu, state=state))
    assert stubs.vm.GetVcpuState(reads).state.fpu[ST0] == PI


def stopped(stubs: Stubs, reads: vm_session_pb2.GetVcpuStateRequest) -> bool:
    try:
        stubs.vm.GetVcpuState(reads)
    except grpc.RpcError as error:
        return error_info(error).reason != "NOT_STOPPED"
    return True


@on_every_engine
def test_fpu_state_before_the_first_exit(stubs: Stubs, engine: str) -> None:
    """Its size is not told yet."""
    vmm = StreamVmm(stubs, engine, HLT)
    state = vcpu_pb2.VcpuState(fpu=b"x")
    request = vm_session_pb2.UpdateVcpuStateRequest(vcpu=vmm.vcpu, state=state)
    wanted = "NOT_STOPPED" if has(stubs, engine, "fpu") else "UNSUPPORTED"
    assert refused(lambda: stubs.vm.UpdateVcpuState(request)).reason == wanted
