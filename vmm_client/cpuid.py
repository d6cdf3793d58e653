"""What CPUID answers on a vCPU, leaf by leaf."""

from __future__ import annotations

from typing import NamedTuple

from vmsession.v1.vm_session_pb2 import CpuidLeaf as LeafMessage


class CpuidLeaf(NamedTuple):
    """The answer for EAX = `function` and, where the leaf has sub-leaves, ECX = `index`."""

    function: int
    index: int | None  # type: ignore[assignment]  # nobody looks for a place in a leaf
    eax: int
    ebx: int
    ecx: int
    edx: int

    @classmethod
    def of(cls, message: LeafMessage) -> CpuidLeaf:
        """As core tells it."""
        index = message.index if message.HasField("index") else None
        return cls(message.function, index, message.eax, message.ebx, message.ecx, message.edx)

    @property
    def message(self) -> LeafMessage:
        """As core is told. ValueError for a number beyond 32 bits."""
        return LeafMessage(**self._asdict())
