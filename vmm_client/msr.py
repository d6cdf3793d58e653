"""Model-specific registers whose accesses exit."""

from __future__ import annotations

from typing import NamedTuple

from vmsession.v1.vm_session_pb2 import MsrRange as RangeMessage


class MsrRange(NamedTuple):
    """`count` MSRs from `first` on; whether RDMSR and WRMSR of them exit."""

    first: int
    count: int = 1  # type: ignore[assignment]  # nobody counts in a range
    read: bool = True
    write: bool = True

    @property
    def message(self) -> RangeMessage:
        """As core is told. ValueError for a number beyond 32 bits."""
        return RangeMessage(**self._asdict())
