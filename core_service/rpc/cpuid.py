"""What CPUID answers on a vCPU: between messages and the table of the channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from vmsession.v1 import vm_session_pb2 as pb

from core_service.engine.protocol import CPUID_LEAVES, CpuidLeaf
from core_service.refusal import invalid


def leaf_messages(table: Sequence[CpuidLeaf]) -> list[pb.CpuidLeaf]:
    """As a client is told."""
    return [pb.CpuidLeaf(**asdict(leaf)) for leaf in table]


def cpuid_table(leaves: Sequence[pb.CpuidLeaf]) -> list[CpuidLeaf]:
    """As a client wants it. Raises Refusal INVALID_ARGUMENT."""
    if len(leaves) > CPUID_LEAVES:
        raise invalid("leaves", f"{len(leaves)} leaves", f"at most {CPUID_LEAVES}")
    table = [
        CpuidLeaf(
            leaf.function,
            leaf.index if leaf.HasField("index") else None,
            *(leaf.eax, leaf.ebx, leaf.ecx, leaf.edx),
        )
        for leaf in leaves
    ]
    _must_be_unambiguous(table)
    return table


def _must_be_unambiguous(table: Sequence[CpuidLeaf]) -> None:
    """A leaf without an index answers for all its sub-leaves."""
    seen: dict[int, set[int | None]] = {}
    for at, leaf in enumerate(table):
        function, index = leaf.function, leaf.index
        indices = seen.setdefault(function, set())
        if index in indices or None in indices or (index is None and indices):
            told = f"{function:#x}" if index is None else f"{function:#x}, index {index}"
            raise invalid(f"leaves[{at}]", told, "a leaf that is not in the table yet")
        indices.add(index)
