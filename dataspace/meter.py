"""What one resource of one quota account amounts to; `quota.Account` has two of them."""

from dataspace.errors import OutOfCaps, OutOfRam


class Meter:
    """Counts one resource at one account, and passes on to the parent what weighs there."""

    def __init__(
        self,
        label: str,
        refusal: type[OutOfRam] | type[OutOfCaps],
        limit: int,
        parent: "Meter | None",
    ) -> None:
        """Start unused; `refusal` is raised, in the name of `label`, for what exceeds `limit`."""
        self._label = label
        self._refusal = refusal
        self._initial_limit = limit
        self._parent = parent
        self.transferred = 0
        self.own = 0  # the part of `used` charged here, not below
        self.used = 0
        self.peak = 0

    @property
    def limit(self) -> int:
        """The most that may be used."""
        return self._initial_limit + self.transferred

    @property
    def free(self) -> int:
        """What may still be used here."""
        return self.limit - self.used

    @property
    def weight(self) -> int:
        """What the parent is charged for."""
        return self._weight(self.used)

    def limit_to(self, limit: int) -> None:
        """Set another limit, beside what was transferred; what is used beyond it stays."""
        self._initial_limit = limit

    def admit(self, change: int) -> None:
        """Raise the refusal unless the use may grow by `change` here and at every ancestor."""
        if change > max(self.free, 0):
            raise self._refusal(change, self.used, self.limit, self._label)
        if self._parent is not None:
            self._parent.admit(self._weight(self.used + change) - self._weight(self.used))

    def change(self, amount: int) -> None:
        """Charge an amount, admitted or taken over, or refund a negative one."""
        self.own += amount
        self._add(amount)

    def admit_transfer(self, amount: int) -> None:
        """Raise the refusal of the ancestor whose quota does not cover the transfer."""
        if self._parent is not None:
            self._parent.admit(self._transfer_cost(amount))

    def transfer(self, amount: int) -> None:
        """Raise the limit by an amount that was admitted, at the parent's expense."""
        if self._parent is not None:
            self._parent._add(self._transfer_cost(amount))
        self.transferred += amount

    def give_back(self) -> None:
        """Return to the parent all that was transferred."""
        self.transfer(-self.transferred)

    def _add(self, amount: int) -> None:
        passed_on = self._weight(self.used + amount) - self._weight(self.used)
        self.used += amount
        self.peak = max(self.peak, self.used)
        if self._parent is not None:
            self._parent._add(passed_on)

    def _weight(self, used: int) -> int:
        return max(used, self.transferred)

    def _transfer_cost(self, amount: int) -> int:
        return max(self.used, self.transferred + amount) - self._weight(self.used)
