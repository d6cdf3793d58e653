"""Resource names: short, unique, and never used again."""

from __future__ import annotations

import secrets
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
    """Gives names such as `sessions/7k2m1`: four digits drawn at core's start, and a counter."""

    def __init__(self) -> None:
        self._boot = "".join(secrets.choice(ALPHABET) for _ in range(BOOT_DIGITS))
        self._numbers = count(1)

    def new(self, collection: str) -> str:
        """A new name in `collection`."""
        return f"{collection}/{self._boot}{encode(next(self._numbers))}"
