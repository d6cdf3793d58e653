"""What each holder of a memory has of it, if what several have is divided among them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dataspace.memory import ram
from dataspace.view import View

PAGE = 4096


@pytest.fixture
def owned() -> Iterator[View]:
    """All of a memory of eight pages."""
    view = View(ram(8 * PAGE, "test"))
    yield view
    view.close()


def test_who_has_it_alone_has_all_of_it(owned: View) -> None:
    assert owned.proportional() == 8 * PAGE


def test_what_two_have_is_divided(owned: View) -> None:
    part = owned.share(2 * PAGE, 4 * PAGE, writable=True)
    assert (owned.proportional(), part.proportional()) == (6 * PAGE, 2 * PAGE)
    part.close()
    assert (owned.proportional(), part.proportional()) == (8 * PAGE, 0)


def test_each_page_is_divided_among_those_who_have_it(owned: View) -> None:
    parts = [
        owned.share(0, 0, writable=True),
        owned.share(0, 2 * PAGE, writable=False),
        owned.share(PAGE, 3 * PAGE, writable=False),
        owned.share(7 * PAGE, 0, writable=False),
    ]
    told = [view.proportional() / PAGE for view in (owned, *parts)]
    whole = 1 / 3 + 1 / 4 + 2 / 3 + 3 / 2 + 1 / 3
    expected = [whole, whole, 1 / 3 + 1 / 4, 1 / 4 + 2 / 3, 1 / 3]
    assert told == pytest.approx(expected, abs=1 / PAGE)
    assert sum(told) == pytest.approx(8, abs=len(told) / PAGE)
    for part in parts:
        part.close()


def test_what_is_left_when_the_owner_is_gone_is_all_of_it() -> None:
    owner = View(ram(2 * PAGE, "test"))
    part = owner.share(PAGE, 0, writable=False)
    owner.close()
    assert (owner.proportional(), part.proportional()) == (0, PAGE)
    part.close()
