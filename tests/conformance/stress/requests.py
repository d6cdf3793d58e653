"""Requests to stop that may come at any time, from any thread, over both ways: what is known of them."""

from __future__ import annotations

from enum import IntEnum


class Pending(IntEnum):
    """Whether a request that was made by RPC still waits; it has no number that would tell."""

    NO = 0
    MAYBE = 1  # it was made while the vCPU ran: before the exit that answered, or after it
    YES = 2


class Requests:
    """Pauses, or windows: those of the page have numbers, those by RPC have none."""

    def __init__(self) -> None:
        self.asked = 0  # the highest number that the page gave out
        self.answered = 0
        self.by_rpc = Pending.NO

    def ask(self, number: int | None = None) -> None:
        """One more was asked for while the vCPU was stopped; without a number, by RPC."""
        if number is None:
            self.by_rpc = Pending.YES
        else:
            self.asked = number

    def __repr__(self) -> str:
        return f"{self.answered} of {self.asked}, by RPC {self.by_rpc.name}"

    @property
    def must(self) -> bool:
        """One waits for certain: it came while the vCPU was stopped, or an exit told."""
        return self.asked != self.answered or self.by_rpc is Pending.YES

    @property
    def may(self) -> bool:
        """One may wait."""
        return self.must or self.by_rpc is not Pending.NO

    def withdrawn(self) -> None:
        """The VMM took back what it asked so far."""
        self.answered = self.asked
        self.by_rpc = Pending.NO

    def passed(self, asked_meanwhile: int, rpc_meanwhile: Pending) -> None:
        """An exit came that answers none, where one that waited would have been answered."""
        self.asked = asked_meanwhile
        self.by_rpc = rpc_meanwhile

    def kept(self, asked_meanwhile: int, rpc_meanwhile: Pending) -> None:
        """An exit came that has nothing to do with them."""
        self.asked = asked_meanwhile
        self.by_rpc = max(self.by_rpc, rpc_meanwhile)

    def satisfied(self, number: int, asked_meanwhile: int, rpc_meanwhile: Pending) -> str:
        """An exit answered them, up to `number`. Returns what is wrong with that, or nothing."""
        wrong = ""
        if not self.asked <= number <= asked_meanwhile:
            wrong = f"{number} acknowledged, of {self.asked} to {asked_meanwhile}"
        elif number == self.answered and not self.may and not rpc_meanwhile:
            wrong = "nobody asked"
        self.asked, self.answered = asked_meanwhile, number
        self.by_rpc = min(Pending.MAYBE, rpc_meanwhile)
        return wrong
