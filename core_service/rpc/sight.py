"""Who may see what in lists and in the audit: a user sees what is his, whichever of his processes holds
it; core's own user and root see everything. Only the client itself may act on it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core_service.client import Client


def sees_all(client: Client) -> bool:
    """Core's own user and root audit everybody."""
    return client.identity.uid in {0, os.geteuid()}


def sees(client: Client, uid: int) -> bool:
    """Whether what belongs to user `uid` is shown to this client."""
    return sees_all(client) or client.identity.uid == uid
