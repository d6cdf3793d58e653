"""Exits and replies of the stream transport: between messages and the halves of a vCPU page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from vmsession.v1 import vcpu_pb2

from core_service.engine.protocol import Exit
from core_service.refusal import invalid
from core_service.rpc.breakpoints import debug_control
from dataspace.registers import SCALAR_INDEX, SEGMENTS, Segment
from dataspace.vcpu_page import (
    DATA_BYTES,
    FPU_BYTES,
    HALF_BYTES,
    EngineHalf,
    ExitFlag,
    InjectType,
    Reason,
    ReplyFlag,
    VmmHalf,
    mask,
)

REGISTERS: Final = frozenset((*SCALAR_INDEX, *SEGMENTS, "fpu"))
VALUES: Final = frozenset((Reason.MSR, Reason.TPR))  # exits whose data is one value of 8 bytes

INJECTIONS: Final = {
    vcpu_pb2.INJECTION_TYPE_INTERRUPT: InjectType.INTERRUPT,
    vcpu_pb2.INJECTION_TYPE_NMI: InjectType.NMI,
    vcpu_pb2.INJECTION_TYPE_EXCEPTION: InjectType.EXCEPTION,
}


def exit_message(arrived: Exit) -> vcpu_pb2.Exit:
    """The exit that an engine sent."""
    half = EngineHalf(arrived.half)
    flags = ExitFlag(half.flags)
    return vcpu_pb2.Exit(
        sequence=half.exit_seq,
        reason=vcpu_pb2.ExitReason.ValueType(half.reason),
        address=half.address,
        size=half.size,
        count=half.count,
        read=ExitFlag.READ in flags,
        data=b"" if ExitFlag.READ in flags else _written_by_guest(half),
        mid_instruction=ExitFlag.MID_INSTRUCTION in flags,
        interruptible=ExitFlag.INTERRUPTIBLE in flags,
        interrupt_flag=ExitFlag.IF in flags,
        nmi_open=ExitFlag.NMI_OPEN in flags,
        fetch=ExitFlag.FETCH in flags,
        write_protected=ExitFlag.WRITE_PROTECTED in flags,
        ip=half.ip,
        ip_valid=ExitFlag.IP_VALID in flags,
        instruction_length=half.instruction_length,
        injection=vcpu_pb2.InjectionResult.ValueType(half.injection),
        detail=half.detail,
        instruction_bytes=half.instruction_bytes,
        state=state_message(arrived),
        pause_acknowledged=half.pause_ack,
    )


def _written_by_guest(half: EngineHalf) -> bytes:
    return half.value.to_bytes(8, "little") if half.reason in VALUES else half.data


def state_message(told: Exit) -> vcpu_pb2.VcpuState:
    """The registers that an engine delivered."""
    half = EngineHalf(told.half)
    state = vcpu_pb2.VcpuState()
    for name, value in half.registers().items():
        if isinstance(value, Segment):
            getattr(state, name).CopyFrom(vcpu_pb2.Segment(**value._asdict()))
        else:
            setattr(state, name, value)
    if told.fpu:
        state.fpu = told.fpu[: half.fpu_size]
    return state


def reply_half(reply: vcpu_pb2.Reply, wanted: tuple[int, int]) -> bytes:
    """A VMM's half with a reply; its FPU area is `fpu_area`. Raises Refusal INVALID_ARGUMENT."""
    half = VmmHalf(bytearray(HALF_BYTES))
    half.set_flags(_flags(reply))
    if len(reply.data) > DATA_BYTES:
        raise invalid("data", f"{len(reply.data)} bytes", f"at most {DATA_BYTES} bytes")
    half.set_data(reply.data)
    half.want(*wanted)
    half.written((written.gpa, written.size) for written in reply.written)
    if reply.HasField("injection"):
        _inject(half, reply.injection)
    if reply.HasField("breakpoints"):
        breakpoints = reply.breakpoints.breakpoints
        control = debug_control(breakpoints)
        half.set_breakpoints((breakpoint_.address for breakpoint_ in breakpoints), control)
    charge(half, reply.state)
    return bytes(half.u8)


def _flags(reply: vcpu_pb2.Reply) -> ReplyFlag:
    return ReplyFlag(
        ReplyFlag.COMPLETE * reply.complete
        | ReplyFlag.FETCH * reply.fetch
        | ReplyFlag.FAULT * reply.fault
        | ReplyFlag.WITHDRAW_WINDOW * reply.withdraw_window
        | ReplyFlag.STEP * reply.step
        | ReplyFlag.NMI_WINDOW * reply.nmi_window
        | ReplyFlag.BREAKPOINTS * reply.HasField("breakpoints")
    )


def _inject(half: VmmHalf, injection: vcpu_pb2.Injection) -> None:
    kind = INJECTIONS.get(injection.type)
    if kind is None:
        raise invalid("injection.type", injection.type, "one of InjectionType")
    if injection.vector > 255:
        raise invalid("injection.vector", injection.vector, "at most 255")
    error_code = injection.error_code if injection.HasField("error_code") else None
    half.inject(kind, injection.vector, error_code)


def charge(half: VmmHalf, state: vcpu_pb2.VcpuState) -> None:
    """Charge the registers that are present. Raises Refusal INVALID_ARGUMENT."""
    for field, value in state.ListFields():
        name = field.name
        if name == "fpu":
            half.charge_fpu()
        elif name in SCALAR_INDEX:
            half.charge(name, value)
        else:
            half.charge(name, _segment(name, value))


def _segment(name: str, value: vcpu_pb2.Segment) -> Segment:
    for field, part in (("selector", value.selector), ("attributes", value.attributes)):
        if part > 0xFFFF:
            raise invalid(f"{name}.{field}", part, "at most 65535")
    return Segment(value.selector, value.attributes, value.limit, value.base)


def fpu_area(state: vcpu_pb2.VcpuState, size: int) -> bytes:
    """The FPU area that follows a half that charges it, else nothing. `size` is the engine's.

    Raises Refusal INVALID_ARGUMENT.
    """
    if not state.HasField("fpu"):
        return b""
    if len(state.fpu) != size:
        raise invalid("fpu", f"{len(state.fpu)} bytes", f"the engine's {size} bytes")
    return state.fpu.ljust(FPU_BYTES, b"\0")


def wanted_mask(wanted: Sequence[str]) -> tuple[int, int]:
    """The mask of register names; `none` is the empty one. Raises Refusal INVALID_ARGUMENT."""
    if list(wanted) == ["none"]:
        return 0, 0
    return _checked_mask(wanted)


def _checked_mask(wanted: Iterable[str]) -> tuple[int, int]:
    names = list(wanted)
    if len(names) > len(REGISTERS):
        raise invalid("wanted", f"{len(names)} names", f"at most {len(REGISTERS)}")
    for name in names:
        if name not in REGISTERS:
            raise invalid("wanted", name, "the name of a register, as in `rax`, `cs` or `fpu`")
    return mask(names)
