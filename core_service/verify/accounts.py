"""The quota accounts against what they are charged for."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dataspace.quota import Amount
from dataspace.vcpu_page import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from core_service.client import Client
    from core_service.core import Core
    from core_service.verify.look import Look
    from dataspace.quota import Account


def check_accounts(core: Core, look: Look) -> None:
    """Recompute what every account is charged, and what those below it weigh, at one moment."""
    comparison = _Comparison(core, look)
    for session in core.sessions.values():
        comparison.compare(session.account, session.name)
    for client in comparison.clients:
        below = [session.account for session in client.sessions.values()]
        comparison.compare(client.account, client.name, below)
    for uid, account in core.users.accounts.items():
        below = [each.account for each in comparison.clients if each.identity.uid == uid]
        comparison.compare(account, f"user {uid}", below)
    comparison.compare(core.users.root, "core", core.users.accounts.values())
    _compare_sessions(core, look)


def _compare_sessions(core: Core, look: Look) -> None:
    there = Counter(session.uid for session in core.sessions.values())
    for uid in there | core.users.sessions:
        counted = core.users.sessions[uid]
        if counted != there[uid]:
            look.wrong(
                "quota", f"user {uid}", f"is counted {counted} sessions, and has {there[uid]}"
            )


class _Comparison:
    """What the objects of core cost, by account."""

    def __init__(self, core: Core, look: Look) -> None:
        self._look = look
        self._ram: Counter[Account] = Counter()
        self._caps: Counter[Account] = Counter()
        self.clients: set[Client] = {*core.clients}
        for dataspace in core.dataspaces.all.values():
            self._add(dataspace.account, dataspace.size, 1)
            if dataspace.account is dataspace.client.account:
                self.clients.add(dataspace.client)
        for session in core.sessions.values():
            streams = sum(1 for vcpu in session.vcpus.values() if vcpu.page is None)
            self._add(session.client.account, 0, 1)
            self._add(session.account, streams * PAGE_BYTES, streams + session.memory.count)
            self.clients.add(session.client)
        for share in core.shares:
            self._add(share.owner.account, 0, 1)

    def _add(self, account: Account, ram: int, caps: int) -> None:
        self._ram[account] += ram
        self._caps[account] += caps

    def compare(self, account: Account, subject: str, below: Iterable[Account] = ()) -> None:
        """Compare what is charged to one account, and what it passes on."""
        self._look.accounts += 1
        weights = [each.weight for each in below]
        own = Amount(self._ram[account], self._caps[account])
        self._differ(subject, "its objects cost", account.own, own)
        used = Amount(
            account.own.ram + sum(weight.ram for weight in weights),
            account.own.caps + sum(weight.caps for weight in weights),
        )
        self._differ(subject, "it and those below it weigh", account.used, used)

    def _differ(self, subject: str, what: str, charged: Amount, cost: Amount) -> None:
        """Tells the difference, which does not move while the account is in use."""
        if charged != cost:
            ram, caps = charged.ram - cost.ram, charged.caps - cost.caps
            self._look.wrong(
                "quota",
                subject,
                f"is charged {ram:+} bytes and {caps:+} capabilities beyond what {what}",
            )
