"""How two engines are taken from one stop to the next that can be compared."""

from __future__ import annotations

from typing import Final, Protocol

from dataspace.vcpu_page import Reason
from vmm_client.diff.code import Instruction, instruction_at, number
from vmm_client.diff.led import follow, handled
from vmm_client.diff.side import Side
from vmm_client.diff.stop import Stop
from vmm_client.diff.undefined import repeats
from vmm_client.errors import VmsessionError

Stops = tuple[Stop, Stop]
SELF_JUMPS: Final = 1 << 16


class CannotLead(VmsessionError):  # noqa: N818 - see vmm_client.errors
    """An instruction that goes on jumping to itself: nothing can be planted where it stands."""

    def __init__(self, rip: int) -> None:
        super().__init__(
            f"the instruction at {rip:#x} jumps to itself more than {SELF_JUMPS} times, and only one "
            "of the engines steps here",
            "compare by exits: --exits",
        )


class Pace(Protocol):
    """Takes both sides on, from the instruction at which they stand."""

    def __call__(self, first: Side, second: Side, at: Instruction) -> Stops: ...


def by_exit(first: Side, second: Side, _at: Instruction) -> Stops:
    """To the next exit. An engine may join the accesses of a string instruction in one exit: the
    other is taken on until it has done as many."""
    sides = first, second
    stops = [side.advance(step=False) for side in sides]
    while len(stops[0].accesses) != len(stops[1].accesses):
        behind = 0 if len(stops[0].accesses) < len(stops[1].accesses) else 1
        if stops[behind].reason is not Reason.COMPLETED:
            break
        stops[behind] = _joined(stops[behind], sides[behind].advance(step=False))
    _leave_finished(first, stops[0], stops[1])
    _leave_finished(second, stops[1], stops[0])
    return stops[0], stops[1]


def _leave_finished(side: Side, stop: Stop, other: Stop) -> None:
    """An engine may still stand at a repeated string instruction whose count has become 0."""
    if stop.reason is not Reason.COMPLETED or stop.rip == other.rip:
        return
    at = instruction_at(side.memory, stop.registers)
    left = number(stop.registers, "rcx") & (1 << at.bits) - 1
    if repeats(at) and not left:
        stop.registers["rip"] = other.rip
        side.charge({"rip": other.rip})


def by_instruction(first: Side, second: Side, at: Instruction) -> Stops:
    """To the next instruction. A fault may take the first instruction of its handler along."""
    one, other = _step(first, at), _step(second, at)
    if one.rip != other.rip and one.reason is other.reason is Reason.DEBUG:
        return _caught_up(first, one, other), _caught_up(second, other, one)
    return one, other


def _caught_up(side: Side, stop: Stop, target: Stop) -> Stop:
    """One step further, if that leads to where the other stands, else as it was."""
    further = side.advance(step=True)
    return _joined(stop, further) if further.rip == target.rip else stop


def second_led(first: Side, second: Side, at: Instruction) -> Stops:
    """As `by_instruction`, where only the first engine can step."""
    lead = _step(first, at)
    for _ in range(SELF_JUMPS):
        if lead.reason is not Reason.DEBUG or lead.rip != at.rip:
            break
        lead = _joined(lead, _step(first, at))
    else:
        raise CannotLead(at.rip)
    while handled(lead.registers) is not None and lead.reason is Reason.DEBUG:
        lead = _joined(lead, first.advance(step=True))
    return lead, follow(second, first, lead)


def first_led(first: Side, second: Side, at: Instruction) -> Stops:
    """As `second_led`, the other way round."""
    lead, led = second_led(second, first, at)
    return led, lead


def _step(side: Side, at: Instruction) -> Stop:
    """A repeated string instruction ends a step with each iteration, or only with its last."""
    stop = side.advance(step=True)
    while stop.reason is Reason.DEBUG and stop.rip == at.rip and repeats(at):
        stop = _joined(stop, side.advance(step=True))
    return stop


def _joined(before: Stop, after: Stop) -> Stop:
    after.accesses = before.accesses + after.accesses
    return after
