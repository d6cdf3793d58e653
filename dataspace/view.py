"""What one holder has of a memory: all of it for its owner, all or a part of it by a share.

One memory has one inode, however many hold it, and the kernel tells only whether anybody at all
can still reach it, never who (`Memory.held`). So each view remembers whether a file descriptor was
given to its holder. From that follows who answers for memory that is still held by somebody:

- a holder who never had an fd of it does not hold it: what engines map, core unmaps itself;
- one who had an fd does, until nobody at all can reach the memory any more. His fd may be closed
  long before, but that cannot be told while others reach the memory, and nothing is refunded early;
- the last view of a memory answers for whoever holds it, known or not.
"""

from collections.abc import Sequence

from dataspace.errors import InvalidDataspace, NotWritable, OutOfRange
from dataspace.memory import Memory
from dataspace.ranges import part_size
from dataspace.views import Views


class View:
    """A range of a memory, and the right to write it. The last view that is closed closes the
    memory. Offsets are within the view."""

    def __init__(self, memory: Memory) -> None:
        """All of a memory, for its owner: takes it over."""
        self.memory = memory
        self.offset = 0
        self.size = memory.size
        self._allowed_to_write = True
        self._borrowed = False
        self._handed_out = False
        self._all = Views()
        self._all.add(self)

    def share(self, offset: int, size: int, *, writable: bool) -> "View":
        """Return a view for another holder: `size` bytes from `offset`, where 0 is the rest.

        Raises InvalidDataspace (unaligned, or beyond this view; closed).
        """
        self._check_open()
        view = View.__new__(View)
        view.memory = self.memory
        view.size = part_size(self.size, offset, size)
        view.offset = self.offset + offset
        view._allowed_to_write = self._allowed_to_write and writable
        view._borrowed = True
        view._handed_out = False
        view._all = self._all
        self._all.add(view)
        return view

    def described(self) -> list[int]:
        """What `resumed` makes the same view of."""
        flags = (self._allowed_to_write, self._borrowed, self._handed_out)
        return [self.offset, self.size, *map(int, flags)]

    @classmethod
    def resumed(cls, memory: Memory, described: Sequence[int], beside: "View | None") -> "View":
        """Return a view as another process had it; `beside` is one of the same memory."""
        view = cls(memory)
        view.offset, view.size = described[:2]
        view._allowed_to_write, view._borrowed, view._handed_out = map(bool, described[2:])
        if beside:
            view._all = beside._all
            view._all.add(view)
        return view

    @property
    def writable(self) -> bool:
        """Whether its holder may write now."""
        return self._allowed_to_write and self.memory.writable

    def open(self, writable: bool) -> int:
        """Return a description for an engine, as `Memory.open`: of the whole memory, in which the
        view starts at `offset`. Raises NotWritable, InvalidDataspace (closed), MemoryFailure.
        """
        self._check_open()
        if writable and not self.writable:
            raise NotWritable(self.memory.name)
        return self.memory.open(writable)

    def hand_out(self, writable: bool) -> int:
        """Return a description for the holder, as `Memory.open`.

        Raises NotWritable, InvalidDataspace (a part: the fd would reach all of it; closed),
        MemoryFailure.
        """
        self._check_open()
        if self.size != self.memory.size:
            raise InvalidDataspace(
                "a part has no file descriptor", offset=self.offset, size=self.size
            )
        if writable and self._borrowed:
            self.memory.forbid_sealing()
        fd = self.open(writable)
        self._handed_out = True
        return fd

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`. Raises OutOfRange, InvalidDataspace, MemoryFailure."""
        self._check(offset, size)
        return self.memory.read(self.offset + offset, size)

    def write(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset`. Raises as `read` does, and NotWritable."""
        self._check(offset, len(data))
        if not self.writable:
            raise NotWritable(self.memory.name)
        self.memory.write(self.offset + offset, data)

    def committed(self) -> int:
        """Return the bytes backed by memory now; for a part, as many as it can have of them."""
        return min(self.memory.committed(), self.size)

    def proportional(self) -> int:
        """Return its bytes, each divided by the number of views that have it; 0 once it is closed."""
        return self._all.proportional(self)

    def held(self) -> bool:
        """Return whether its holder answers for memory that somebody can still reach."""
        return (self._handed_out or self._alone) and self.memory.held()

    def close(self) -> None:
        """Give it up: nothing is reached through it any more, though the memory may live on for others.
        Closing again does nothing."""
        self._all.discard(self)
        if not self._all:
            self.memory.close()

    @property
    def _alone(self) -> bool:
        return self in self._all and len(self._all) == 1

    def _check_open(self) -> None:
        if self not in self._all:
            raise InvalidDataspace("is closed", name=self.memory.name)

    def _check(self, offset: int, size: int) -> None:
        self._check_open()
        if offset < 0 or size < 0 or offset + size > self.size:
            raise OutOfRange(offset, size, self.size)
