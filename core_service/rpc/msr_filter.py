"""The MSRs whose accesses exit: from messages to the ranges of the channel."""

from __future__ import annotations

from collections.abc import Sequence

from vmsession.v1 import vm_session_pb2 as pb

from core_service.engine.protocol import MSR_RANGE, MSR_RANGES, MsrRange
from core_service.refusal import invalid


def msr_ranges(ranges: Sequence[pb.MsrRange]) -> list[MsrRange]:
    """As a client wants them. Raises Refusal INVALID_ARGUMENT."""
    if len(ranges) > MSR_RANGES:
        raise invalid("ranges", f"{len(ranges)} ranges", f"at most {MSR_RANGES}")
    return [_checked(at, wanted) for at, wanted in enumerate(ranges)]


def _checked(at: int, wanted: pb.MsrRange) -> MsrRange:
    if not 1 <= wanted.count <= MSR_RANGE:
        raise invalid(f"ranges[{at}].count", wanted.count, f"within 1 and {MSR_RANGE}")
    if wanted.first + wanted.count > 1 << 32:
        last = f"{wanted.first:#x} and {wanted.count - 1} more"
        raise invalid(f"ranges[{at}].first", last, "within 32 bits to its last MSR")
    if not wanted.read and not wanted.write:
        raise invalid(f"ranges[{at}]", "neither read nor write", "one of them, or both")
    return MsrRange(wanted.first, wanted.count, wanted.read, wanted.write)
