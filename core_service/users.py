"""The quota accounts of users, between core's own and those of their clients, and how many sessions
each user has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from core_service.refusal import Refusal
from dataspace.quota import Account, Amount

if TYPE_CHECKING:
    from core_service.policy import ClientLimits, Policy, SessionLimits

SHARED: Final = "core"  # label of the accounts whose use is not the business of a single client


class Users:
    """One account for each uid that has clients or holds memory."""

    def __init__(self, policy: Policy) -> None:
        self.root = Account(SHARED, policy.ram, policy.capabilities)
        self._session_limit = policy.sessions
        self._accounts: dict[int, Account] = {}
        self._clients: Counter[int] = Counter()
        self._sessions: Counter[tuple[int, str]] = Counter()
        self.on_session_end: Callable[[], None] = lambda: None

    @property
    def accounts(self) -> dict[int, Account]:
        """The accounts of all users."""
        return dict(self._accounts)

    @property
    def sessions(self) -> Counter[int]:
        """How many sessions each user has."""
        counted: Counter[int] = Counter()
        for (uid, _), number in self._sessions.items():
            counted[uid] += number
        return counted

    def limit_to(self, policy: Policy) -> None:
        """Heed another policy of core as a whole; that of a user comes with his clients."""
        self.root.limit_to(policy.ram, policy.capabilities)
        self._session_limit = policy.sessions

    def account(self, uid: int) -> Account:
        """The account of a user."""
        if uid not in self._accounts:
            limits = self.root.limits
            self._accounts[uid] = Account(SHARED, limits.ram, limits.caps, self.root)
        return self._accounts[uid]

    def clients_of(self, uid: int) -> int:
        """How many clients a user has, with those that are being reclaimed."""
        return self._clients[uid]

    def open_client(self, uid: int, limits: ClientLimits) -> Account:
        """An account for a new client of a user."""
        self.account(uid).limit_to(limits.user_ram, limits.user_capabilities)
        account = Account("client", limits.ram, limits.capabilities, self.account(uid))
        self._clients[uid] += 1
        return account

    def close_client(self, uid: int, account: Account) -> None:
        """A client ended and owns nothing."""
        account.close()
        self._clients[uid] -= 1
        if not self._clients[uid]:
            del self._clients[uid]
        self.let_go(uid)

    def open_session(self, uid: int, label: str, limits: SessionLimits) -> None:
        """A user starts a session, which is a process of core's. Raises Refusal OUT_OF_CAPS."""
        used = sum(
            number
            for (whose, theirs), number in self._sessions.items()
            if whose == uid and theirs.startswith(limits.label)
        )
        if used >= limits.sessions:
            of_them = f" whose labels begin with {limits.label!r}" if limits.label else ""
            raise Refusal(
                "OUT_OF_CAPS",
                f"your user has {used} sessions{of_them}, of {limits.sessions} at most",
                asked=1,
                used=used,
                limit=limits.sessions,
            )
        if self._sessions.total() >= self._session_limit:
            raise Refusal("OUT_OF_CAPS", "core has no session left; retry later", asked=1)
        self._sessions[uid, label] += 1

    def resume_session(self, uid: int, label: str) -> None:
        """Count a session of an earlier core, whatever policy says."""
        self._sessions[uid, label] += 1

    def close_session(self, uid: int, label: str) -> None:
        """It ended, or did not start."""
        self._sessions[uid, label] -= 1
        if not self._sessions[uid, label]:
            del self._sessions[uid, label]
        self.on_session_end()

    def let_go(self, uid: int) -> None:
        """Forget a user who has no clients and holds nothing."""
        account = self._accounts.get(uid)
        if account and uid not in self._clients and account.used == Amount(0, 0):
            account.close()
            del self._accounts[uid]
