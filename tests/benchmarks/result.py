"""One measured number, and what it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Self


@dataclass(frozen=True, slots=True)
class Result:
    """`ratio` is `value` divided by that of `against`, the name of another result; None for both
    where there is nothing to compare with."""

    name: str
    value: float
    unit: str
    against: str | None = None
    ratio: float | None = None

    @classmethod
    def of(cls, name: str, unit: str, samples: Sequence[float]) -> Self:
        """The median of the rounds."""
        return cls(name, median(samples), unit)

    @classmethod
    def compared(
        cls, name: str, unit: str, samples: Sequence[float], against: str, others: Sequence[float]
    ) -> Self:
        """The ratio is the median of the rounds' own ratios: noise that lasts longer than a round
        hits both sides of each. Raises ValueError for different numbers of rounds."""
        ratios = [sample / other for sample, other in zip(samples, others, strict=True)]
        return cls(name, median(samples), unit, against, median(ratios))

    @classmethod
    def best(
        cls, name: str, unit: str, samples: Sequence[float], against: str, others: Sequence[float]
    ) -> Self:
        """The quietest round of each side: what is left when nobody else wants the cores."""
        return cls(f"{name}.best", min(samples), unit, against, min(samples) / min(others))
