"""Resource names: short, unique, and never used again."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from itertools import count
from typing import Final

ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: none is mistaken for another
BOOT_DIGITS: Final = 4


def encode(number: int) -> str:
    """A number in base 32."""
    digits = ALPHABET[number % 32]
    while number := number // 32:
        digits = ALPHABET[number % 32] + digits
    return digits


class Names:
    """Gives names such as `sessions/7k2m1`: four digits drawn at core's start, and a counter. Core's own
    name, `cores/7k2m`, tells that the digits are used; `known` is whether an earlier core had a name."""

    def __init__(self, known: Callable[[str], bool]) -> None:
        self._boot = _draw()
        while known(self.core):
            self._boot = _draw()
        self._boots = {self._boot}
        self._numbers = count(1)

    @property
    def core(self) -> str:
        """Core's own name."""
        return f"cores/{self._boot}"

    def new(self, collection: str) -> str:
        """A new name in `collection`."""
        return f"{collection}/{self._boot}{encode(next(self._numbers))}"

    def could_be(self, collection: str, name: str) -> bool:
        """Whether a name is of this core, or one adopted from, and of this collection."""
        start, digits = f"{collection}/", name.removeprefix(f"{collection}/")
        ours = name.startswith(start) and digits[:BOOT_DIGITS] in self._boots
        return ours and set(digits) <= set(ALPHABET)

    def adopt(self, name: str) -> None:
        """A name of an earlier core that is in use still."""
        self._boots.add(name.partition("/")[2][:BOOT_DIGITS])


def _draw() -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(BOOT_DIGITS))


def age_order(name: str) -> tuple[int, str]:
    """Sorts the names of one collection by the time when they were given."""
    return len(name), name
