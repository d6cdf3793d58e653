"""One-time tickets that open an fd channel."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Final

from core_service.refusal import Refusal

if TYPE_CHECKING:
    from core_service.client import Client

OPEN_PER_CLIENT: Final = 16


class Tickets:
    """Issued over gRPC, spent on the fd channel: once, in time, and by the same process only."""

    def __init__(self, life: float) -> None:
        self._life = life
        self._open: dict[str, tuple[Client, asyncio.TimerHandle]] = {}

    def issue(self, client: Client) -> str:
        """A new ticket. Raises Refusal OUT_OF_CAPS when the client has too many unspent ones."""
        mine = sum(1 for holder, _ in self._open.values() if holder is client)
        if mine >= OPEN_PER_CLIENT:
            raise Refusal(
                "OUT_OF_CAPS",
                f"{mine} tickets are unspent; spend one, or wait {self._life:g} s",
                asked=1,
                used=mine,
                limit=OPEN_PER_CLIENT,
            )
        ticket = secrets.token_hex(16)
        timer = asyncio.get_running_loop().call_later(self._life, self._open.pop, ticket, None)
        self._open[ticket] = (client, timer)
        return ticket

    def spend(self, ticket: str) -> Client | None:
        """The client that a ticket was issued to; None if it is unknown, spent or too old."""
        client, timer = self._open.pop(ticket, (None, None))
        if timer:
            timer.cancel()
        return client

    def close(self) -> None:
        """Void all."""
        for _, timer in self._open.values():
            timer.cancel()
        self._open.clear()
