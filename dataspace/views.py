"""All views of one memory, and what each of them has of it if it is divided among them."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataspace.view import View


class Views:
    """The views of a memory that are not closed."""

    def __init__(self) -> None:
        """Start with none."""
        self._all: set[View] = set()
        self._divided: dict[int, float] | None = None

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._all)

    def __contains__(self, view: object) -> bool:
        """Return whether a view is not closed."""
        return view in self._all

    def add(self, view: "View") -> None:
        """Have one more, whose range does not change."""
        self._all.add(view)
        self._divided = None

    def discard(self, view: "View") -> None:
        """Forget one that is closed."""
        self._all.discard(view)
        self._divided = None

    def proportional(self, view: "View") -> int:
        """Return the bytes of a view, each divided by the number of views that have it, rounded down.

        So all views together have what the memory has. Costs something only after a change."""
        if view not in self._all:
            return 0
        if len(self._all) == 1:
            return view.size
        if self._divided is None:
            self._divided = dict(self._divide())
        return int(self._divided[view.offset + view.size] - self._divided[view.offset])

    def _divide(self) -> Iterator[tuple[int, float]]:
        """Yield where views begin and end, with the bytes before it that a view of all would have."""
        changes: Counter[int] = Counter()
        for view in self._all:
            changes[view.offset] += 1
            changes[view.offset + view.size] -= 1
        at, views, share = 0, 0, 0.0
        for place in sorted(changes):
            share += (place - at) / views if views else 0
            yield place, share
            at = place
            views += changes[place]
