"""Pages of a list: entries after the one that the token names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from core_service.refusal import invalid

DEFAULT: Final = 100
LIMIT: Final = 1000

Entry = TypeVar("Entry")


def page(
    entries: Sequence[Entry], name: Callable[[Entry], str], size: int, token: str
) -> tuple[Sequence[Entry], str]:
    """One page, and the token of the next, empty at the end.

    The token is the name of the last entry of the page before. Raises Refusal INVALID_ARGUMENT for
    a token that names none of the entries, or a size beyond the limit.
    """
    if size > LIMIT:
        raise invalid("page_size", size, f"at most {LIMIT}")
    start = 0
    if token:
        places = [place for place, entry in enumerate(entries) if name(entry) == token]
        if not places:
            raise invalid("page_token", token, "one of the response before; start again without")
        start = places[0] + 1
    end = start + (size or DEFAULT)
    chosen = entries[start:end]
    return chosen, name(chosen[-1]) if end < len(entries) else ""
