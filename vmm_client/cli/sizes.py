"""Sizes of memory on the command line, as in `64K`, `16M`, `2G`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Final

from cyclopts import Parameter, Token

from vmm_client.cli.output import size

UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def parse_size(text: str) -> int:
    """Bytes. Raises ValueError for what is no positive number of bytes below 2^63."""
    match = re.fullmatch(r"([0-9]{1,19})([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    size = int(match[1]) << UNITS[match[2].upper()] if match else 0
    if not 0 < size < 1 << 63:
        raise ValueError(f"{text!r} is no size: write it as in 64K, 16M or 2G")
    return size


def _convert(_type: type, tokens: Sequence[Token]) -> int:
    return parse_size(tokens[0].value)


Size = Annotated[int, Parameter(converter=_convert, show_default=size)]
