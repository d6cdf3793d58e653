"""What was looked at, and what was found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """`works` is None where this process cannot tell, or where one can do without. `detail` says what is
    there, or what is wrong and what to do."""

    where: str
    what: str
    works: bool | None
    detail: str = ""
