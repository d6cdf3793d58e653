"""Which device answers at which port and at which guest-physical address.

A VMM hands every I/O and MMIO exit to a `Router`. Addresses that nobody claimed behave like an
empty bus: reads float high, writes are lost; both are counted, for what a guest pokes in vain is
the first question when it does not boot.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

PORT_LIMIT: Final = 1 << 16
MMIO_LIMIT: Final = 1 << 52
POKES_KEPT: Final = 256


class Device(Protocol):
    """Something with registers. `offset` counts from the start of the range, `size` is in bytes,
    and a value read fits in `size` bytes."""

    def read(self, offset: int, size: int) -> int: ...
    def write(self, offset: int, size: int, value: int) -> None: ...


class RangeError(ValueError):
    """A range that cannot be claimed: it is empty, leaves the bus, or is claimed already."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One device's range, from `base` up to but excluding `end`; `width` is its widest access."""

    base: int
    end: int
    device: Device
    width: int

    def __str__(self) -> str:
        return f"{type(self.device).__name__} at {self.base:#x}-{self.end - 1:#x}"


class Poke(NamedTuple):
    """Accesses of one kind to an address that nobody claimed."""

    address: int
    kind: Literal["read", "write"]
    times: int


class Bus:
    """Claims in address order: a lookup costs O(log n)."""

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.pokes_not_kept = 0
        self._bases: list[int] = []
        self._claims: list[Claim] = []
        self._pokes: Counter[tuple[int, Literal["read", "write"]]] = Counter()

    def add(self, base: int, size: int, device: Device, width: int = 1) -> None:
        """Claims `size` addresses from `base` for `device`.

        A wider access than `width` bytes (1, 2, 4 or 8) reaches the device as several narrower
        ones, lowest address first, as a bus bridge would make them. RangeError: see there.
        """
        if size <= 0 or base < 0 or base + size > self.limit:
            raise RangeError(
                f"{self.name} range {base:#x} + {size:#x} is not within 0 to {self.limit - 1:#x}"
            )
        if width not in (1, 2, 4, 8):
            raise RangeError(f"access width {width} is not 1, 2, 4 or 8 bytes")
        claim = Claim(base, base + size, device, width)
        index = bisect_right(self._bases, base)
        for neighbour in self._claims[max(index - 1, 0) : index + 1]:
            if neighbour.base < claim.end and base < neighbour.end:
                raise RangeError(f"{claim} overlaps {neighbour} on the {self.name} bus")
        self._bases.insert(index, base)
        self._claims.insert(index, claim)

    def read(self, address: int, size: int) -> int:
        """The value of `size` bytes (1 to 8), all ones where nobody answers."""
        claim = self._find(address)
        if claim is not None and size <= claim.width and address + size <= claim.end:
            return claim.device.read(address - claim.base, size)
        if self._empty(address, size):
            self._poke(address, "read")
            return (1 << 8 * size) - 1
        low = _lower_part(size)
        return self.read(address, low) | self.read(address + low, size - low) << 8 * low

    def write(self, address: int, size: int, value: int) -> None:
        """Writes `size` bytes (1 to 8); lost where nobody listens."""
        claim = self._find(address)
        if claim is not None and size <= claim.width and address + size <= claim.end:
            claim.device.write(address - claim.base, size, value)
            return
        if self._empty(address, size):
            self._poke(address, "write")
            return
        low = _lower_part(size)
        self.write(address, low, value & ((1 << 8 * low) - 1))
        self.write(address + low, size - low, value >> 8 * low)

    def pokes(self) -> list[Poke]:
        """What went to nobody, the most frequent first. At most `POKES_KEPT` addresses are told
        apart; accesses beyond those are only counted, in `pokes_not_kept`."""
        return [Poke(address, kind, n) for (address, kind), n in self._pokes.most_common()]

    def _find(self, address: int) -> Claim | None:
        index = bisect_right(self._bases, address) - 1
        if index >= 0 and address < self._claims[index].end:
            return self._claims[index]
        return None

    def _empty(self, address: int, size: int) -> bool:
        return all(self._find(byte) is None for byte in range(address, address + size))

    def _poke(self, address: int, kind: Literal["read", "write"]) -> None:
        if (address, kind) in self._pokes or len(self._pokes) < POKES_KEPT:
            self._pokes[address, kind] += 1
        else:
            self.pokes_not_kept += 1


class PortBus(Bus):
    """The I/O ports, hot enough for a table with an entry for each."""

    def __init__(self) -> None:
        super().__init__("port", PORT_LIMIT)
        self._by_port: dict[int, Claim] = {}

    def add(self, base: int, size: int, device: Device, width: int = 1) -> None:
        super().add(base, size, device, width)
        claim = self._claims[bisect_right(self._bases, base) - 1]
        self._by_port.update(dict.fromkeys(range(base, base + size), claim))

    def _find(self, address: int) -> Claim | None:
        return self._by_port.get(address)


class Router:
    """The two buses of a PC."""

    def __init__(self) -> None:
        self.ports = PortBus()
        self.mmio = Bus("MMIO", MMIO_LIMIT)


def _lower_part(size: int) -> int:
    """The size of the first of two accesses that replace one of `size` bytes, at least 2."""
    return 1 << (size - 1).bit_length() - 1
