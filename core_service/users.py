"""The quota accounts of users, between core's own and those of their clients."""

from __future__ import annotations

from dataspace.quota import Account, Amount


class Users:
    """One account for each uid that has clients or holds memory."""

    def __init__(self, root: Account, ram: int, capabilities: int) -> None:
        self.root = root
        self._ram = ram
        self._capabilities = capabilities
        self._accounts: dict[int, Account] = {}
        self._clients: dict[int, int] = {}

    def account(self, uid: int) -> Account:
        """The account of a user."""
        if uid not in self._accounts:
            self._accounts[uid] = Account(f"uid {uid}", self._ram, self._capabilities, self.root)
        return self._accounts[uid]

    def open_client(self, uid: int, label: str, ram: int, capabilities: int) -> Account:
        """An account for a new client of a user."""
        account = Account(label, ram, capabilities, self.account(uid))
        self._clients[uid] = self._clients.get(uid, 0) + 1
        return account

    def close_client(self, uid: int, account: Account) -> None:
        """A client ended and owns nothing."""
        account.close()
        self._clients[uid] -= 1
        if not self._clients[uid]:
            del self._clients[uid]
        self.let_go(uid)

    def let_go(self, uid: int) -> None:
        """Forget a user who has no clients and holds nothing."""
        account = self._accounts.get(uid)
        if account and uid not in self._clients and account.used == Amount(0, 0):
            account.close()
            del self._accounts[uid]
