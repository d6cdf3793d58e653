"""Attachments, and the sorted collection of those that do not overlap."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter

_start = attrgetter("gpa")
_end = attrgetter("end")


@dataclass(frozen=True, slots=True)
class Attachment:
    """`size` bytes of a dataspace from `offset`, at guest-physical address `gpa`, with rights."""

    gpa: int
    size: int
    dataspace: str
    offset: int
    writable: bool
    executable: bool

    @property
    def end(self) -> int:
        """The first guest-physical address behind it."""
        return self.gpa + self.size

    def within(self, gpa: int, end: int) -> "Attachment":
        """Return the part of it in [gpa, end), which it must overlap."""
        start = max(self.gpa, gpa)
        return replace(
            self,
            gpa=start,
            size=min(self.end, end) - start,
            offset=self.offset + start - self.gpa,
        )


class Attachments:
    """Non-overlapping attachments of one address space, iterated in the order of their gpa.

    A lookup is O(log n). A change moves the pointers behind it, too: measured at 20,000 entries a
    bisected list is as fast as any tree in Python.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._ordered: list[Attachment] = []

    def __iter__(self) -> Iterator[Attachment]:
        """Iterate over a snapshot, so that the loop may change the collection."""
        return iter(tuple(self._ordered))

    def __len__(self) -> int:
        """Return the number of attachments."""
        return len(self._ordered)

    def find(self, gpa: int) -> Attachment | None:
        """Return the attachment that covers the byte at `gpa`."""
        return next(iter(self.overlapping(gpa, 1)), None)

    def overlapping(self, gpa: int, size: int) -> list[Attachment]:
        """Return the attachments that share a byte with the range."""
        return self._ordered[self._span(gpa, size)]

    def pieces(self, gpa: int, size: int) -> list[Attachment]:
        """Return what is attached in the range, cut to the range."""
        return [touched.within(gpa, gpa + size) for touched in self.overlapping(gpa, size)]

    def splits(self, gpa: int, size: int) -> bool:
        """Return whether cutting the range out makes two attachments of one."""
        touched = self.overlapping(gpa, size)
        return len(touched) == 1 and touched[0].gpa < gpa and gpa + size < touched[0].end

    def insert(self, attachment: Attachment) -> None:
        """Add an attachment that overlaps none."""
        self._ordered[self._span(attachment.gpa, attachment.size)] = [attachment]

    def cut(self, gpa: int, size: int) -> None:
        """Take the range out; what was attached beside it stays."""
        span = self._span(gpa, size)
        end = gpa + size
        survivors = [
            *(left.within(left.gpa, gpa) for left in self._ordered[span][:1] if left.gpa < gpa),
            *(
                right.within(end, right.end)
                for right in self._ordered[span][-1:]
                if end < right.end
            ),
        ]
        self._ordered[span] = survivors

    def clear(self) -> None:
        """Remove all."""
        self._ordered.clear()

    def _span(self, gpa: int, size: int) -> slice:
        first = bisect_right(self._ordered, gpa, key=_end)
        return slice(first, bisect_left(self._ordered, gpa + size, lo=first, key=_start))
