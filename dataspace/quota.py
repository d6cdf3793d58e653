"""Quota accounts for RAM (in whole pages) and capabilities, in a tree.

A charge counts at the account and at every ancestor, all or nothing. The limits that siblings
start with may add up to more than their parent's: a limit is a bound, not a promise. A promise is
what `Account.upgrade` gives. It transfers quota from the parent, which pays for it at once, used
or not. So an account weighs on its parent with what it uses or what was transferred to it,
whichever is more.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dataspace.errors import AccountingError, OutOfCaps, OutOfRam
from dataspace.meter import Meter
from dataspace.pages import round_up


@dataclass(frozen=True, slots=True)
class Amount:
    """An amount of both resources: `ram` in bytes, `caps` in capabilities."""

    ram: int
    caps: int


class Account:
    """One account, charged by its owner and through the accounts opened below it."""

    def __init__(
        self, label: str, ram_limit: int, caps_limit: int, parent: "Account | None" = None
    ) -> None:
        """Open an account of `ram_limit` bytes and `caps_limit` capabilities below `parent`."""
        if ram_limit < 0 or caps_limit < 0:
            raise AccountingError(
                f"{label}: negative limit of {ram_limit} bytes, {caps_limit} caps"
            )
        if parent is not None:
            parent._check_open()
            parent._children += 1
        self.label = label
        self._parent = parent
        self._children: int = 0
        self._closed = False
        self._ram: Meter = Meter(label, OutOfRam, ram_limit, parent._ram if parent else None)
        self._caps: Meter = Meter(label, OutOfCaps, caps_limit, parent._caps if parent else None)

    @property
    def used(self) -> Amount:
        """What is charged here, including what the accounts below weigh."""
        return Amount(self._ram.used, self._caps.used)

    @property
    def own(self) -> Amount:
        """The part of what is charged here that is not below."""
        return Amount(self._ram.own, self._caps.own)

    @property
    def weight(self) -> Amount:
        """What it is charged for at its parent: what it uses, or what was transferred to it."""
        return Amount(self._ram.weight, self._caps.weight)

    @property
    def peak(self) -> Amount:
        """The most that was ever charged here, of each resource for itself."""
        return Amount(self._ram.peak, self._caps.peak)

    @property
    def limits(self) -> Amount:
        """The most that can be charged here: the initial limits and what was transferred."""
        return Amount(self._ram.limit, self._caps.limit)

    @property
    def transferred(self) -> Amount:
        """What was transferred from the parent."""
        return Amount(self._ram.transferred, self._caps.transferred)

    @property
    def free(self) -> Amount:
        """What the limits leave; an ancestor may leave less."""
        return Amount(self._ram.free, self._caps.free)

    def limit_to(self, ram: int, caps: int) -> None:
        """Set other initial limits. What is charged beyond them stays charged; no more is admitted."""
        if ram < 0 or caps < 0:
            raise AccountingError(f"{self.label}: negative limit of {ram} bytes, {caps} caps")
        self._ram.limit_to(ram)
        self._caps.limit_to(caps)

    def charge(self, ram: int = 0, caps: int = 0) -> None:
        """Charge `ram` bytes, rounded up to whole pages, and `caps` here and at every ancestor.

        Raises OutOfRam or OutOfCaps, naming the first account that lacks quota; then nothing is
        charged.
        """
        ram = self._whole_pages(ram, caps)
        self._ram.admit(ram)
        self._caps.admit(caps)
        self._ram.change(ram)
        self._caps.change(caps)

    def take_over(self, ram: int = 0, caps: int = 0) -> None:
        """Charge for what exists already, such as memory that somebody holds: it is in use whether the
        quota covers it or not. Beyond the limit nothing more is admitted until it is gone.
        """
        ram = self._whole_pages(ram, caps)
        self._ram.change(ram)
        self._caps.change(caps)

    def refund(self, ram: int = 0, caps: int = 0) -> None:
        """Undo a charge of `ram` bytes, rounded up to whole pages, and `caps`.

        More than was charged here (not at an account below) is an AccountingError.
        """
        ram = self._whole_pages(ram, caps)
        if ram > self._ram.own or caps > self._caps.own:
            raise AccountingError(
                f"{self.label}: refund of {ram} bytes, {caps} caps, "
                f"charged are {self._ram.own} bytes, {self._caps.own} caps"
            )
        self._ram.change(-ram)
        self._caps.change(-caps)

    @contextmanager
    def charged(self, ram: int = 0, caps: int = 0) -> Iterator[None]:
        """Charge for what the body makes; refund if the body raises."""
        self.charge(ram, caps)
        try:
            yield
        except BaseException:
            self.refund(ram, caps)
            raise

    def upgrade(self, ram: int = 0, caps: int = 0) -> None:
        """Raise the limits by quota transferred from the parent, RAM rounded up to whole pages.

        The parent is charged for what does not weigh on it already. Raises OutOfRam or OutOfCaps
        if it, or an ancestor, lacks quota; then nothing is transferred.
        """
        self.admit_upgrade(ram, caps)
        self._ram.transfer(self._whole_pages(ram, caps))
        self._caps.transfer(caps)

    def admit_upgrade(self, ram: int = 0, caps: int = 0) -> None:
        """Raise what `upgrade` would, and transfer nothing."""
        ram = self._whole_pages(ram, caps)
        if self._parent is None:
            raise AccountingError(f"{self.label} has no parent to transfer quota from")
        self._ram.admit_transfer(ram)
        self._caps.admit_transfer(caps)

    def close(self) -> None:
        """Close the account and give back what was transferred; closing again does nothing.

        An account that is in use, or has open accounts below it, is an AccountingError.
        """
        if self._closed:
            return
        if self._children or self.used != Amount(0, 0):
            raise AccountingError(f"{self.label}: {self.used} used, {self._children} accounts open")
        self._ram.give_back()
        self._caps.give_back()
        if self._parent is not None:
            self._parent._children -= 1
        self._closed = True

    def _whole_pages(self, ram: int, caps: int) -> int:
        self._check_open()
        if ram < 0 or caps < 0:
            raise AccountingError(f"{self.label}: negative amount of {ram} bytes, {caps} caps")
        return round_up(ram)

    def _check_open(self) -> None:
        if self._closed:
            raise AccountingError(f"{self.label} is closed")
