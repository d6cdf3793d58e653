"""Quota accounts: all-or-nothing charges along the tree, transfers, and what is a defect."""

import pytest

from dataspace.errors import AccountingError, DataspaceError, OutOfCaps, OutOfRam
from dataspace.quota import Account, Amount

PAGE = 4096
NOTHING = Amount(0, 0)


@pytest.fixture
def root() -> Account:
    return Account("core", 100 * PAGE, 100)


@pytest.fixture
def user(root: Account) -> Account:
    return Account("uid 1000", 60 * PAGE, 60, root)


@pytest.fixture
def session(user: Account) -> Account:
    return Account("sessions/1", 10 * PAGE, 10, user)


def test_new_account_is_unused(session: Account) -> None:
    assert (session.used, session.peak) == (NOTHING, NOTHING)
    assert session.limits == session.free == Amount(10 * PAGE, 10)


@pytest.mark.parametrize(
    ("ram", "pages"), [(0, 0), (1, 1), (PAGE, 1), (PAGE + 1, 2), (10 * PAGE, 10)]
)
def test_ram_is_charged_in_whole_pages(session: Account, ram: int, pages: int) -> None:
    session.charge(ram=ram)
    assert session.used == Amount(pages * PAGE, 0)
    session.refund(ram=ram)
    assert session.used == NOTHING


def test_charge_counts_up_to_the_root(root: Account, user: Account, session: Account) -> None:
    user.charge(PAGE, 1)
    session.charge(2 * PAGE, 3)
    assert session.used == Amount(2 * PAGE, 3)
    assert root.used == user.used == Amount(3 * PAGE, 4)
    session.refund(PAGE, 3)
    assert root.used == user.used == Amount(2 * PAGE, 1)
    assert root.peak == user.peak == Amount(3 * PAGE, 4)


def test_limit_itself_can_be_used(session: Account) -> None:
    session.charge(10 * PAGE, 10)
    assert session.free == NOTHING


@pytest.mark.parametrize(
    ("ram", "caps", "refusal", "numbers"),
    [
        (
            10 * PAGE,
            1,
            OutOfRam,
            {"asked": 10 * PAGE, "used": PAGE, "limit": 10 * PAGE, "account": "sessions/1"},
        ),
        (PAGE, 10, OutOfCaps, {"asked": 10, "used": 1, "limit": 10, "account": "sessions/1"}),
    ],
)
def test_refused_charge_charges_nothing(  # noqa: PLR0917
    root: Account,
    session: Account,
    ram: int,
    caps: int,
    refusal: type[DataspaceError],
    numbers: dict[str, int | str],
) -> None:
    session.charge(PAGE, 1)
    with pytest.raises(refusal) as refused:
        session.charge(ram, caps)
    assert refused.value.numbers == numbers
    assert root.used == session.used == session.peak == Amount(PAGE, 1)


def test_ancestor_can_refuse(root: Account, user: Account, session: Account) -> None:
    root.charge(caps=95)
    with pytest.raises(OutOfCaps) as refused:
        session.charge(PAGE, 6)
    assert refused.value.numbers == {"asked": 6, "used": 95, "limit": 100, "account": "core"}
    assert session.used == user.used == NOTHING
    assert root.used == Amount(0, 95)


def test_siblings_share_the_parents_limit(user: Account) -> None:
    one, other = (Account(label, 50 * PAGE, 50, user) for label in ("one", "other"))
    one.charge(50 * PAGE)
    other.charge(10 * PAGE)
    with pytest.raises(OutOfRam):
        other.charge(1)


def test_charged_body_keeps_the_charge_unless_it_raises(root: Account, session: Account) -> None:
    with session.charged(1, 1):
        assert session.used == Amount(PAGE, 1)
    with pytest.raises(KeyboardInterrupt), session.charged(1, 1):
        raise KeyboardInterrupt
    assert session.used == root.used == Amount(PAGE, 1)


def test_body_does_not_run_without_quota(session: Account) -> None:
    with pytest.raises(OutOfCaps), session.charged(caps=11):
        pytest.fail("the body ran")
    assert session.used == NOTHING


def test_transfer_is_paid_by_the_parent_at_once(
    root: Account, user: Account, session: Account
) -> None:
    session.upgrade(4 * PAGE + 1, 3)
    assert session.limits == Amount(15 * PAGE, 13)
    assert root.used == user.used == Amount(5 * PAGE, 3)
    assert session.used == NOTHING


def test_transferred_quota_is_certain(root: Account, session: Account) -> None:
    session.upgrade(4 * PAGE, 4)
    root.charge(96 * PAGE, 96)
    session.charge(4 * PAGE, 4)
    assert root.used == Amount(100 * PAGE, 100)
    with pytest.raises(OutOfRam) as refused:
        session.charge(1)
    assert refused.value.numbers["account"] == "core"


def test_use_beyond_the_transfer_is_charged_as_it_happens(user: Account, session: Account) -> None:
    session.upgrade(4 * PAGE)
    session.charge(6 * PAGE)
    assert user.used == Amount(6 * PAGE, 0)
    session.refund(5 * PAGE)
    assert user.used == Amount(4 * PAGE, 0)


def test_transfer_costs_the_parent_only_what_it_did_not_pay(
    user: Account, session: Account
) -> None:
    session.charge(6 * PAGE)
    session.upgrade(4 * PAGE)
    assert user.used == Amount(6 * PAGE, 0)
    session.upgrade(4 * PAGE)
    assert user.used == Amount(8 * PAGE, 0)
    assert session.limits == Amount(18 * PAGE, 10)


def test_refused_transfer_transfers_nothing(root: Account, user: Account, session: Account) -> None:
    with pytest.raises(OutOfCaps) as refused:
        session.upgrade(PAGE, 61)
    assert refused.value.numbers == {"asked": 61, "used": 0, "limit": 60, "account": "uid 1000"}
    root.charge(100 * PAGE)
    with pytest.raises(OutOfRam) as refused_above:
        session.upgrade(PAGE)
    assert refused_above.value.numbers["account"] == "core"
    assert session.limits == Amount(10 * PAGE, 10)
    assert user.used == NOTHING


def test_transfers_of_several_levels_add_up(root: Account, user: Account, session: Account) -> None:
    user.upgrade(20 * PAGE)
    session.upgrade(15 * PAGE)
    assert (user.used, root.used) == (Amount(15 * PAGE, 0), Amount(20 * PAGE, 0))
    session.charge(25 * PAGE)
    assert (user.used, root.used) == (Amount(25 * PAGE, 0), Amount(25 * PAGE, 0))


def test_close_gives_back_what_was_transferred(
    root: Account, user: Account, session: Account
) -> None:
    session.upgrade(4 * PAGE, 4)
    session.charge(PAGE, 1)
    session.refund(PAGE, 1)
    session.close()
    session.close()
    assert root.used == user.used == NOTHING
    assert session.limits == Amount(10 * PAGE, 10)
    user.close()


@pytest.mark.parametrize(("ram", "caps"), [(PAGE, 0), (0, 1)])
def test_close_in_use_is_a_defect(root: Account, session: Account, ram: int, caps: int) -> None:
    session.upgrade(PAGE, 1)
    session.charge(ram, caps)
    with pytest.raises(AccountingError):
        session.close()
    assert root.used == Amount(PAGE, 1)
    session.refund(ram, caps)
    session.close()


def test_close_above_an_open_account_is_a_defect(user: Account, session: Account) -> None:
    with pytest.raises(AccountingError):
        user.close()
    session.close()
    user.close()


def test_closed_account_can_do_nothing(session: Account) -> None:
    session.close()
    for use in session.charge, session.refund, session.upgrade:
        with pytest.raises(AccountingError, match="sessions/1 is closed"):
            use()
    with pytest.raises(AccountingError, match="sessions/1 is closed"):
        Account("below", 0, 0, session)


@pytest.mark.parametrize(("ram", "caps"), [(PAGE + 1, 0), (0, 2)])
def test_refund_of_more_than_was_charged_is_a_defect(session: Account, ram: int, caps: int) -> None:
    session.charge(PAGE, 1)
    with pytest.raises(AccountingError):
        session.refund(ram, caps)
    assert session.used == Amount(PAGE, 1)


def test_refund_of_what_was_charged_below_is_a_defect(user: Account, session: Account) -> None:
    session.charge(PAGE, 1)
    with pytest.raises(AccountingError):
        user.refund(PAGE, 1)
    assert user.used == Amount(PAGE, 1)


@pytest.mark.parametrize(("ram", "caps"), [(-1, 0), (-PAGE, 0), (0, -1)])
def test_negative_amounts_are_a_defect(session: Account, ram: int, caps: int) -> None:
    for use in session.charge, session.refund, session.upgrade:
        with pytest.raises(AccountingError, match="negative"):
            use(ram, caps)
    with pytest.raises(AccountingError, match="negative"):
        Account("owing", ram, caps)
    assert session.used == NOTHING


def test_root_has_nowhere_to_transfer_from(root: Account) -> None:
    with pytest.raises(AccountingError, match="core has no parent"):
        root.upgrade(PAGE)


def test_defects_are_no_answers_to_clients() -> None:
    assert not issubclass(AccountingError, DataspaceError)


def test_an_upgrade_is_admitted_before_it_is_made() -> None:
    parent = Account("parent", 4 * PAGE, 4)
    child = Account("child", 0, 0, parent)
    child.admit_upgrade(ram=4 * PAGE, caps=4)
    assert (child.limits, parent.used) == (Amount(0, 0), Amount(0, 0))
    with pytest.raises(OutOfRam):
        child.admit_upgrade(ram=5 * PAGE)
    with pytest.raises(OutOfCaps):
        child.admit_upgrade(caps=5)
    with pytest.raises(AccountingError):
        parent.admit_upgrade(caps=1)
