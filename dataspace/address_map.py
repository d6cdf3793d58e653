"""The guest-physical address map of one session.

Bookkeeping is separate from mapping: the map decides what may be attached and records what is,
two callbacks do it. The record never claims less than is mapped: a mapping is recorded right
after `map` returned, and forgotten only after `unmap` did.
"""

from collections.abc import Callable, Iterator

from dataspace.attachments import Attachment, Attachments
from dataspace.errors import AddressMapFull, RegionConflict
from dataspace.pages import aligned
from dataspace.ranges import check_range, part_size

__all__ = ["CAPACITY", "LIMIT", "AddressMap", "Attachment"]

LIMIT = 1 << 48
# KVM_CAP_NR_MEMSLOTS on x86. Without a bound a client could detach every second page of a large
# attachment, and so have core remember half a million of them for each gigabyte.
CAPACITY = 32_764


class AddressMap:
    """What is attached where; at most `capacity` attachments below address `limit` (in bytes)."""

    def __init__(
        self,
        map: Callable[[Attachment], None],  # noqa: A002 - map and unmap are the words of the field
        unmap: Callable[[int, int], None],
        limit: int = LIMIT,
        capacity: int = CAPACITY,
    ) -> None:
        """Start empty.

        `map(attachment)` makes a mapping, or raises and makes none. `unmap(gpa, size)` undoes a
        mapping or a page-aligned part of one; like munmap(2) it must succeed where nothing is
        mapped, as a detach that failed halfway is tried again as a whole.
        """
        if limit <= 0 or not aligned(limit):
            raise ValueError(f"limit {limit:#x} is no positive number of whole pages")
        self._map = map
        self._unmap = unmap
        self._limit = limit
        self._capacity = capacity
        self._all = Attachments()
        self._by_dataspace: dict[str, Attachments] = {}

    def __iter__(self) -> Iterator[Attachment]:
        """Iterate over a snapshot in the order of the guest-physical addresses."""
        return iter(self._all)

    def __len__(self) -> int:
        """Return the number of attachments."""
        return len(self._all)

    def find(self, gpa: int) -> Attachment | None:
        """Return the attachment that covers the byte at `gpa`."""
        return self._all.find(gpa)

    def overlapping(self, gpa: int, size: int) -> list[Attachment]:
        """Return the attachments that share a byte with a range, whole."""
        return self._all.overlapping(gpa, size)

    def has(self, dataspace: str) -> bool:
        """Return whether a dataspace is attached anywhere."""
        return dataspace in self._by_dataspace

    def of(self, dataspace: str) -> list[Attachment]:
        """Return the attachments of one dataspace in the order of their addresses."""
        return list(self._by_dataspace.get(dataspace, ()))

    def attach(  # noqa: PLR0913, PLR0917 - the fields of one attachment
        self,
        dataspace: str,
        dataspace_size: int,
        gpa: int,
        offset: int = 0,
        size: int = 0,
        writable: bool = True,
        executable: bool = True,
    ) -> Attachment:
        """Map `size` bytes of a dataspace from `offset` at `gpa`; size 0 is the rest of it.

        The identical attachment again is answered with the one that exists: several vCPUs that
        fault on a page each attach it. A size beyond the dataspace is refused, where Genode clamps
        it: the caller would take memory for mapped that is not. The rights are those that the
        dataspace's own leave, ANDed by the caller.

        Raises InvalidDataspace (offset or size unaligned or beyond the dataspace), InvalidRange
        (gpa unaligned, range beyond the limit), RegionConflict, AddressMapFull, and what `map`
        raises; then nothing is recorded.
        """
        size = part_size(dataspace_size, offset, size)
        check_range(gpa, size, self._limit)
        wanted = Attachment(gpa, size, dataspace, offset, writable, executable)
        in_the_way = self._all.overlapping(gpa, size)
        if in_the_way == [wanted]:
            return in_the_way[0]
        if in_the_way:
            raise RegionConflict(gpa, size, in_the_way[0].gpa, in_the_way[0].size)
        if len(self) >= self._capacity:
            raise AddressMapFull(len(self), self._capacity)
        self._map(wanted)
        self._all.insert(wanted)
        self._by_dataspace.setdefault(dataspace, Attachments()).insert(wanted)
        return wanted

    def detach(self, gpa: int, size: int) -> list[Attachment]:
        """Unmap exactly the given range, and return the pieces that were attached there.

        An attachment that reaches beyond the range keeps the rest, if need be as two. The cost
        grows with the attachments touched, not with the size of the range; `unmap` is called once
        for each piece.

        Raises InvalidRange (unaligned, empty, beyond the limit), AddressMapFull where the range
        would split an attachment and no room is left (as munmap(2) fails with ENOMEM), and what
        `unmap` raises; then the record stays as it was, though pieces may be unmapped already: try
        again, or close the session.
        """
        check_range(gpa, size, self._limit)
        if len(self) >= self._capacity and self._all.splits(gpa, size):
            raise AddressMapFull(len(self), self._capacity)
        pieces = self._unmapped(self._all.pieces(gpa, size))
        self._all.cut(gpa, size)
        for piece in reversed(pieces):
            own = self._by_dataspace[piece.dataspace]
            own.cut(piece.gpa, piece.size)
            if not own:
                del self._by_dataspace[piece.dataspace]
        return pieces

    def detach_dataspace(self, dataspace: str) -> list[Attachment]:
        """Unmap one dataspace wherever it is attached, and return its attachments.

        The cost grows with that dataspace's own attachments. Raises what `unmap` raises, as
        `detach` does.
        """
        pieces = self._unmapped(self.of(dataspace))
        for piece in reversed(pieces):
            self._all.cut(piece.gpa, piece.size)
        self._by_dataspace.pop(dataspace, None)
        return pieces

    def detach_all(self) -> list[Attachment]:
        """Unmap everything, and return what was attached.

        Raises what `unmap` raises, as `detach` does.
        """
        pieces = self._unmapped(list(self))
        self._all.clear()
        self._by_dataspace.clear()
        return pieces

    def _unmapped(self, pieces: list[Attachment]) -> list[Attachment]:
        for piece in pieces:
            self._unmap(piece.gpa, piece.size)
        return pieces
