"""Real memory against a bytearray, with descriptions and mappings that come and go."""

import mmap
import os
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dataspace.errors import OutOfRange
from dataspace.memory import ram

PAGE = 4096
SIZE = 3 * PAGE

# Around page boundaries and both ends, where mistakes are.
offsets = st.builds(lambda page, delta: page * PAGE + delta, st.integers(0, 3), st.integers(-2, 2))
picks = st.integers(0, 7)


def open_fds() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


class MemoryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.fds_before = open_fds()
        self.model = bytearray(SIZE)
        self.memory = ram(SIZE, "model")
        self.fds: list[tuple[int, bool]] = []
        self.mappings: list[tuple[mmap.mmap, bool]] = []

    @rule(writable=st.booleans())
    def hand_out(self, writable: bool) -> None:
        self.fds.append((self.memory.open(writable), writable))

    @precondition(lambda self: self.fds)
    @rule(pick=picks)
    def map(self, pick: int) -> None:
        fd, writable = self.fds[pick % len(self.fds)]
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self.mappings.append((mmap.mmap(fd, SIZE, access=access), writable))

    @precondition(lambda self: self.fds)
    @rule(pick=picks)
    def close_fd(self, pick: int) -> None:
        os.close(self.fds.pop(pick % len(self.fds))[0])

    @precondition(lambda self: self.mappings)
    @rule(pick=picks)
    def unmap(self, pick: int) -> None:
        self.mappings.pop(pick % len(self.mappings))[0].close()

    @rule(offset=offsets, data=st.binary(max_size=6))
    def write(self, offset: int, data: bytes) -> None:
        if 0 <= offset <= SIZE - len(data):
            self.memory.write(offset, data)
            self.model[offset : offset + len(data)] = data
        else:
            with pytest.raises(OutOfRange):
                self.memory.write(offset, data)

    @rule(offset=offsets, size=st.integers(-1, 2 * PAGE))
    def read(self, offset: int, size: int) -> None:
        if offset >= 0 and 0 <= size <= SIZE - offset:
            assert self.memory.read(offset, size) == self.model[offset : offset + size]
        else:
            with pytest.raises(OutOfRange):
                self.memory.read(offset, size)

    @precondition(lambda self: any(writable for _, writable in self.mappings))
    @rule(pick=picks, offset=st.integers(0, SIZE - 1), byte=st.integers(0, 255))
    def store(self, pick: int, offset: int, byte: int) -> None:
        writable = [mapping for mapping, writable in self.mappings if writable]
        writable[pick % len(writable)][offset] = self.model[offset] = byte

    @invariant()
    def everybody_sees_the_same(self) -> None:
        assert self.memory.read(0, SIZE) == self.model
        for mapping, _ in self.mappings:
            assert mapping[:] == self.model

    @invariant()
    def held_while_anybody_holds(self) -> None:
        assert self.memory.held() == bool(self.fds or self.mappings)

    def teardown(self) -> None:
        for fd, _ in self.fds:
            os.close(fd)
        for mapping, _ in self.mappings:
            mapping.close()
        assert not self.memory.held()
        self.memory.close()
        assert open_fds() == self.fds_before


TestMemory = pytest.mark.timeout(60)(MemoryMachine.TestCase)
TestMemory.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
