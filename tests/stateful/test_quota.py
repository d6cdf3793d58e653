"""Trees of quota accounts against sums that are worked out afresh each time."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dataspace.errors import AccountingError, DataspaceError, OutOfCaps, OutOfRam
from dataspace.quota import Account, Amount

PAGE = 4096

ram_sizes = st.integers(0, 6 * PAGE)
cap_counts = st.integers(0, 6)
picks = st.integers(0, 11)


class BodyError(Exception):
    pass


@dataclass(eq=False)
class Model:
    """One account: what it was told, in pages and capabilities; all else is derived."""

    account: Account
    limit: list[int]
    parent: "Model | None" = None
    own: list[int] = field(default_factory=lambda: [0, 0])
    transferred: list[int] = field(default_factory=lambda: [0, 0])
    children: list["Model"] = field(default_factory=list)
    peak: list[int] = field(default_factory=lambda: [0, 0])

    def used(self, resource: int) -> int:
        return self.own[resource] + sum(
            max(child.used(resource), child.transferred[resource]) for child in self.children
        )

    def within_limits(self, resource: int) -> bool:
        bound = self.limit[resource] + self.transferred[resource]
        above = self.parent is None or self.parent.within_limits(resource)
        return self.used(resource) <= bound and above

    def remember_peaks(self) -> None:
        self.peak = [max(self.peak[r], self.used(r)) for r in (0, 1)]
        if self.parent:
            self.parent.remember_peaks()


def in_pages(ram: int) -> int:
    return (ram + PAGE - 1) // PAGE


def expect(refusal: type[Exception] | None, action: Callable[[], None]) -> None:
    if refusal is None:
        action()
    else:
        with pytest.raises(refusal):
            action()


class QuotaMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.models: list[Model] = []  # the open accounts, the root first

    @initialize(ram=ram_sizes, caps=cap_counts)
    def open_root(self, ram: int, caps: int) -> None:
        self.opened(Account("root", 3 * ram, 3 * caps), 3 * ram, 3 * caps, None)

    @rule(pick=picks, ram=ram_sizes, caps=cap_counts)
    def open_below(self, pick: int, ram: int, caps: int) -> None:
        parent = self.model(pick)
        self.opened(Account("below", ram, caps, parent.account), ram, caps, parent)

    def model(self, pick: int) -> Model:
        return self.models[pick % len(self.models)]

    def opened(self, account: Account, ram: int, caps: int, parent: Model | None) -> None:
        model = Model(account, [ram // PAGE, caps], parent)
        if parent:
            parent.children.append(model)
        self.models.append(model)

    @rule(pick=picks, ram=ram_sizes, caps=cap_counts, body_fails=st.booleans())
    def charge(self, pick: int, ram: int, caps: int, body_fails: bool) -> None:
        model = self.model(pick)
        refusal = self.try_change(model, model.own, (in_pages(ram), caps), keep=not body_fails)

        def charge() -> None:
            with model.account.charged(ram, caps):
                if body_fails:
                    raise BodyError

        expect(refusal or (BodyError if body_fails else None), charge)

    @rule(pick=picks, ram=ram_sizes, caps=cap_counts)
    def upgrade(self, pick: int, ram: int, caps: int) -> None:
        model = self.model(pick)
        refusal: type[Exception] | None = AccountingError
        if model.parent:
            refusal = self.try_change(model, model.transferred, (in_pages(ram), caps), keep=True)
        expect(refusal, lambda: model.account.upgrade(ram, caps))

    def try_change(
        self, model: Model, counters: list[int], change: tuple[int, int], keep: bool
    ) -> type[DataspaceError] | None:
        """Make the change in the model, and take it back where it breaks a limit."""
        before = list(counters)
        counters[:] = [old + more for old, more in zip(before, change, strict=True)]
        fits = [model.within_limits(resource) for resource in (0, 1)]
        if all(fits):
            model.remember_peaks()
        if not all(fits) or not keep:
            counters[:] = before
        return None if all(fits) else OutOfCaps if fits[0] else OutOfRam

    @rule(pick=picks, ram=ram_sizes, caps=cap_counts)
    def refund(self, pick: int, ram: int, caps: int) -> None:
        model = self.model(pick)
        allowed = in_pages(ram) <= model.own[0] and caps <= model.own[1]
        expect(None if allowed else AccountingError, lambda: model.account.refund(ram, caps))
        if allowed:
            model.own = [model.own[0] - in_pages(ram), model.own[1] - caps]

    @rule(pick=picks)
    def close_in_use(self, pick: int) -> None:
        model = self.model(pick)
        if model.children or any(model.own):
            expect(AccountingError, model.account.close)

    @precondition(lambda self: len(self.models) > 1)
    @rule(pick=picks)
    def close(self, pick: int) -> None:
        self.close_all_below(self.models[1 + pick % (len(self.models) - 1)])

    def close_all_below(self, model: Model) -> None:
        for child in list(model.children):
            self.close_all_below(child)
        model.account.refund(model.own[0] * PAGE, model.own[1])
        model.account.close()
        self.models.remove(model)
        if model.parent:
            model.parent.children.remove(model)

    @invariant()
    def accounts_are_the_sums(self) -> None:
        for model in self.models:
            account = model.account
            assert account.used == Amount(model.used(0) * PAGE, model.used(1))
            assert account.peak == Amount(model.peak[0] * PAGE, model.peak[1])
            assert model.within_limits(0)
            assert model.within_limits(1)

    def teardown(self) -> None:
        if self.models:
            root = self.models[0]
            self.close_all_below(root)
            assert root.account.used == Amount(0, 0)


TestQuota = pytest.mark.timeout(60)(QuotaMachine.TestCase)
TestQuota.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
