"""The quota accounts of users, between core's own and those of their clients, and how many sessions
each user has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from core_service.refusal import Refusal
from dataspace.quota import Account, Amount

SHARED: Final = "core"  # label of the accounts whose use is not the business of a single client


class Users:
    """One account for each uid that has clients or holds memory."""

    def __init__(self, ram: int, capabilities: int, sessions: int) -> None:
        self.root = Account(SHARED, ram, capabilities)
        self._session_limit = sessions
        self._accounts: dict[int, Account] = {}
        self._clients: Counter[int] = Counter()
        self._sessions: Counter[int] = Counter()
        self.on_session_end: Callable[[], None] = lambda: None

    @property
    def accounts(self) -> dict[int, Account]:
        """The accounts of all users."""
        return dict(self._accounts)

    @property
    def sessions(self) -> Counter[int]:
        """How many sessions each user has."""
        return Counter(self._sessions)

    def account(self, uid: int) -> Account:
        """The account of a user."""
        if uid not in self._accounts:
            limits = self.root.limits
            self._accounts[uid] = Account(SHARED, limits.ram, limits.caps, self.root)
        return self._accounts[uid]

    def open_client(self, uid: int, ram: int, capabilities: int) -> Account:
        """An account for a new client of a user."""
        account = Account("client", ram, capabilities, self.account(uid))
        self._clients[uid] += 1
        return account

    def close_client(self, uid: int, account: Account) -> None:
        """A client ended and owns nothing."""
        account.close()
        self._clients[uid] -= 1
        if not self._clients[uid]:
            del self._clients[uid]
        self.let_go(uid)

    def open_session(self, uid: int) -> None:
        """A user starts a session, which is a process of core's. Raises Refusal OUT_OF_CAPS."""
        used = self._sessions[uid]
        if used >= self._session_limit:
            raise Refusal(
                "OUT_OF_CAPS",
                f"your user has {used} sessions, of {self._session_limit} at most",
                asked=1,
                used=used,
                limit=self._session_limit,
            )
        self._sessions[uid] += 1

    def close_session(self, uid: int) -> None:
        """It ended, or did not start."""
        self._sessions[uid] -= 1
        if not self._sessions[uid]:
            del self._sessions[uid]
        self.on_session_end()

    def let_go(self, uid: int) -> None:
        """Forget a user who has no clients and holds nothing."""
        account = self._accounts.get(uid)
        if account and uid not in self._clients and account.used == Amount(0, 0):
            account.close()
            del self._accounts[uid]
