"""One processor that two engines can both be: what CPUID tells on either, and no more."""

from __future__ import annotations

from typing import Final

from vmm_client.cpuid import CpuidLeaf

# Leaf and sub-leaf: which of EAX, EBX, ECX, EDX are feature bits (SDM volume 2, CPUID).
FEATURES: Final[dict[tuple[int, int], tuple[str, ...]]] = {
    (1, 0): ("ecx", "edx"),
    (7, 0): ("ebx", "ecx", "edx"),
    (0xD, 0): ("eax", "edx"),
    (0xD, 1): ("eax", "ecx", "edx"),
    (0x8000_0001, 0): ("ecx", "edx"),
    (0x8000_0007, 0): ("edx",),
    (0x8000_0008, 0): ("ebx",),
}


def common(first: list[CpuidLeaf], second: list[CpuidLeaf]) -> list[CpuidLeaf]:
    """The first's leaves that the second has too, with the features of both."""
    others = {_place(leaf): leaf for leaf in second}
    return [_both(leaf, others[_place(leaf)]) for leaf in first if _place(leaf) in others]


def _both(first: CpuidLeaf, second: CpuidLeaf) -> CpuidLeaf:
    names = FEATURES.get(_place(first), ())
    return first._replace(**{name: getattr(first, name) & getattr(second, name) for name in names})


def _place(leaf: CpuidLeaf) -> tuple[int, int]:
    return leaf.function, leaf.index or 0
