"""What an engine has mapped, told in parts. Whoever verifies waits for all of them, and keeps them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from core_service.engine.protocol import (
    MAPPING_ENTRIES,
    MalformedPacketError,
    Mapping,
    Mappings,
)


async def listed(part_from: Callable[[int], Awaitable[Mappings]], most: int) -> list[Mapping]:
    """All entries, of which there are `most` at most. Raises MalformedPacketError, and what `part_from`
    raises."""
    found: list[Mapping] = []
    while True:
        part = await part_from(len(found))
        if part.total > most:
            raise MalformedPacketError(
                f"it listed {part.total} mappings, of {most} that it can have"
            )
        whole = min(part.total - len(found), MAPPING_ENTRIES)
        if part.first != len(found) or len(part.entries) != whole:
            raise MalformedPacketError(
                f"it listed {len(part.entries)} of {part.total} mappings from {part.first} on"
            )
        found += part.entries
        if len(found) == part.total:
            return found
