"""Plain books of shared memory: what the clients of `test_shares` have, and what their guests reach."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

from core_service.dataspaces import Dataspace
from core_service.shares import Share
from dataspace.attachments import Attachment
from dataspace.view import View

PAGE = 4096


class GuestMemory:
    """What an engine has mapped: of each guest page the memory, its page, and whether it is writable."""

    def __init__(self) -> None:
        self.name, self.pid, self.died = "books", 0, None
        self.hello = SimpleNamespace(physical_bits=40)
        self.pages: dict[int, tuple[int, int, bool]] = {}
        self.told: set[int] = set()

    async def map(self, memory: View, attachment: Attachment) -> None:
        first = (memory.offset + attachment.offset) // PAGE
        for n in range(attachment.size // PAGE):
            here = id(memory.memory), first + n, attachment.writable
            assert self.pages.setdefault(attachment.gpa // PAGE + n, here) is here

    async def unmap(self, gpa: int, size: int) -> None:
        for page in range(gpa // PAGE, (gpa + size) // PAGE):
            self.pages.pop(page, None)

    async def written(self, gpa: int, size: int) -> None:
        told = range(gpa // PAGE, -(-(gpa + size) // PAGE))
        assert all(page in self.pages for page in told)
        self.told.update(told)

    async def stop(self) -> None:
        self.pages.clear()


@dataclass(eq=False)
class Root:
    """One memory: the first byte of each page, its open fds, and how it may be used."""

    identity: int
    content: list[int]
    fds: list[int] = field(default_factory=list)
    sealed: bool = False
    sealable: bool = True


@dataclass(eq=False)
class Book:
    """One dataspace: pages from `first` of a root."""

    real: Dataspace
    user: int
    root: Root
    first: int
    pages: int
    may_write: bool
    had_fd: bool = False
    state: str = "alive"
    shown: dict[int, tuple[int, bool]] = field(default_factory=dict)

    @property
    def writable(self) -> bool:
        return self.may_write and not self.root.sealed


@dataclass(eq=False)
class Offer:
    """One offer, and what became of it."""

    real: Share
    owner: Book
    user: int
    pid: int = 0
    accepted: Book | None = None
