"""Priority and CPUs on the command line, as in `10` and `0-3,8`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Final

from cyclopts import Parameter, Token, validators

MOST: Final = 8192  # of any Linux for x86


def parse_cpus(text: str) -> list[int]:
    """In ascending order. Raises ValueError for what is no list of CPUs."""
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < MOST:
            raise ValueError(f"{text!r} is no list of CPUs: write it as in 0-3,8")
        chosen.update(range(first, last + 1))
    return sorted(chosen)


def _convert(_type: type, tokens: Sequence[Token]) -> list[int]:
    return parse_cpus(tokens[0].value)


Priority = Annotated[int | None, Parameter(validator=validators.Number(gte=0, lte=19))]
Cpus = Annotated[list[int] | None, Parameter(converter=_convert, n_tokens=1, negative="")]
