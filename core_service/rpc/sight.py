"""Who may see what in lists and in the audit: a user sees what is his, whichever of his processes holds
it, and what policy lets him see of others; operators see everything. Only the client itself may act on
it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core_service.client import Client


def sees_all(client: Client) -> bool:
    """Whether it is an operator's."""
    return client.sight.everything


def sees(client: Client, uid: int) -> bool:
    """Whether what belongs to user `uid` is shown to this client."""
    return sees_all(client) or uid == client.identity.uid or uid in client.sight.uids
