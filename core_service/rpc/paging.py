"""Pages of a list: the entries after the last one of the page before, be that there any more or not."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from core_service.names import age_order
from core_service.refusal import invalid

DEFAULT: Final = 100
LIMIT: Final = 1000

Entry = TypeVar("Entry")


def page(
    entries: Sequence[Entry],
    name: Callable[[Entry], str],
    size: int,
    token: str,
    known: Callable[[str], bool],
) -> tuple[Sequence[Entry], str]:
    """One page of entries that are in the order of their age, and the token of the next, empty at the
    end. The token is the name of the last entry.

    Raises Refusal INVALID_ARGUMENT for a size beyond the limit, or a token that is no `known` name.
    """
    count = page_size(size)
    if token and not known(token):
        raise wrong_token(token)
    start = bisect_right(entries, age_order(token), key=lambda entry: age_order(name(entry)))
    chosen = entries[start : start + count]
    return chosen, name(chosen[-1]) if start + count < len(entries) else ""


def page_size(asked: int) -> int:
    """Entries of a page. Raises Refusal INVALID_ARGUMENT."""
    if asked > LIMIT:
        raise invalid("page_size", asked, f"at most {LIMIT}")
    return asked or DEFAULT


def wrong_token(token: str) -> Exception:
    """The refusal of a token that no response gave."""
    return invalid("page_token", token, "that of the response before; start again without")
