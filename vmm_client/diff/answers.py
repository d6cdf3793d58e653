"""What devices answer where there are none: numbers from a seed, the same on every engine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import count


def answers(seed: int) -> Iterator[int]:
    """64-bit numbers without end."""
    key = seed.to_bytes(8, "little", signed=True)
    for number in count():
        digest = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=8, key=key).digest()
        yield int.from_bytes(digest, "little")
