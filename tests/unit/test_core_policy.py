"""The policy file: what it says of whom, and what is wrong with it, by line."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

import pytest

from core_service.identity import Identity
from core_service.policy import Policy, PolicyError, load
from core_service.policy.form import cpus, size
from core_service.settings import Settings

GIB = 1 << 30
SETTINGS = Settings(capabilities=1000, client_capabilities=250)
NOBODY = pwd.getpwnam("nobody")
OWN_GROUP = grp.getgrgid(NOBODY.pw_gid)


def identity(uid: int, gid: int = 5000) -> Identity:
    return Identity(uid, gid, 1234, 1)


def policy_of(directory: Path, text: str) -> Policy:
    file = directory / "policy.toml"
    file.write_text(text)
    return load(file, SETTINGS)


def test_without_a_file_everybody_has_the_settings() -> None:
    policy = load(None, SETTINGS)
    limits = policy.client(identity(1234))
    assert limits
    assert (limits.ram, limits.capabilities) == (SETTINGS.client_ram, 250)
    session = policy.session(identity(1234), "any")
    assert session
    assert (session.sessions, session.vcpus, session.engines) == (256, None, None)
    assert policy.sight(identity(1234)).everything is False
    assert policy.sight(identity(os.geteuid())).everything is True
    assert policy.sight(identity(0)).everything is True


def test_an_empty_file_lets_nobody_in(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, "")
    assert policy.client(identity(1234)) is None
    assert policy.session(identity(1234), "") is None
    assert policy.sight(identity(os.geteuid())).everything is True


def test_an_operator_is_let_in_to_look_and_to_drain(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, "operators = [777]\n[[allow]]\nusers = [1234]\n")
    for uid in (0, 777):
        limits = policy.client(identity(uid))
        assert limits
        assert (limits.ram, limits.capabilities, limits.user_ram) == (0, 0, 0)
        assert policy.session(identity(uid), "") is None


def test_the_first_rule_that_fits_counts(tmp_path: Path) -> None:
    policy = policy_of(
        tmp_path,
        """
        [limits]
        ram = "8 GiB"
        capabilities = 500
        sessions = 7

        [[allow]]
        users = [1001]
        sessions = 3
        ram = "2 GiB"
        engines = ["soft"]

        [[allow]]
        sessions = 1
        client_ram = 4096
        vcpus = 2
        """,
    )
    first, other = policy.client(identity(1001)), policy.client(identity(1002))
    assert first
    assert other
    assert (policy.ram, policy.capabilities, policy.sessions) == (8 * GIB, 500, 7)
    assert (first.ram, first.user_ram, first.user_capabilities) == (2 * GIB, 2 * GIB, 500)
    assert (other.ram, other.user_ram, other.capabilities) == (4096, 8 * GIB, 250)
    session, others = policy.session(identity(1001), ""), policy.session(identity(1002), "")
    assert session
    assert others
    assert (session.sessions, session.engines, session.vcpus) == (3, ("soft",), None)
    assert (others.sessions, others.engines, others.vcpus) == (1, None, 2)


def test_a_label_is_a_prefix_and_about_sessions_only(tmp_path: Path) -> None:
    policy = policy_of(
        tmp_path,
        """
        [[allow]]
        users = [1001]
        label = "ci-"
        sessions = 64
        cpus = "0-1,3"
        engine_memory = "2 GiB"
        engine_cpu = 150
        priority = 4

        [[allow]]
        users = [1001]
        sessions = 0

        [[allow]]
        users = [1002]
        label = "ci-"
        """,
    )
    labelled, plain = (policy.session(identity(1001), label) for label in ("ci-7", "x"))
    assert labelled
    assert plain
    assert (labelled.sessions, plain.sessions) == (64, 0)
    assert labelled.cpus == {0, 1, 3}
    assert (labelled.engine_memory, labelled.engine_cpu, labelled.priority) == (2 * GIB, 150, 4)
    assert policy.client(identity(1002)) is None
    assert policy.session(identity(1002), "x") is None
    assert policy.session(identity(1002), "ci-") is not None


def test_users_and_groups_by_name(tmp_path: Path) -> None:
    policy = policy_of(
        tmp_path,
        f"""
        operators = ["@{OWN_GROUP.gr_name}"]
        [[allow]]
        groups = ["{OWN_GROUP.gr_name}"]
        audit = ["root", "@{OWN_GROUP.gr_name}", 77]
        """,
    )
    by_user, by_group = identity(NOBODY.pw_uid), identity(4321, OWN_GROUP.gr_gid)
    assert policy.client(by_user) is not None
    assert policy.client(by_group) is not None
    assert policy.client(identity(4321)) is None
    assert policy.sight(by_user).everything is True
    assert {0, 77, NOBODY.pw_uid} <= policy.sight(by_group).uids
    assert policy.sight(identity(4321)).uids == frozenset()


def test_operators_are_a_group_by_its_number_where_there_are_no_names(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, "operators = ['@4000']\n[[allow]]\n")
    assert policy.sight(identity(4321, 4000)).everything
    assert not policy.sight(identity(4000, 4321)).everything


@pytest.mark.parametrize(
    ("text", "line", "key", "why"),
    [
        ("a = ", 1, "", "Invalid value"),
        ("[[allow]]\nusers = [1]\n\n[[allow]]\nuser = [2]\n", 5, "allow[1].user", "no such key"),
        ("[[allow]]\nsessions = -1\n", 2, "allow[0].sessions", ">= 0"),
        ("[[allow]]\nsessions = 'x'\n", 2, "allow[0].sessions", "Expected `int"),
        ("\n[limits]\nram = '4 GB'\n", 3, "limits.ram", "'4 GB' is no size"),
        ("[limits]\nram = '9999999 TiB'\n", 2, "limits.ram", "4 PiB at most"),
        ("operators = ['no-such-user']\n", 1, "operators", "no user 'no-such-user'"),
        ("[[allow]]\ngroups = ['no-such']\n", 2, "allow[0].groups", "no group 'no-such'"),
        ("[[allow]]\nusers = [4294967296]\n", 2, "allow[0].users", "4294967296 is no id"),
        ("[[allow]]\nengines = ['xen']\n", 2, "allow[0].engines", "no engine 'xen'"),
        ("[[allow]]\ncpus = '3-1'\n", 2, "allow[0].cpus", "'3-1' is no list"),
        ("[[allow]]\nrom_paths = ['/no/such']\n", 2, "allow[0].rom_paths", "'/no/such'"),
        ("[[allow]]\nlabel = 'a'\nram = 1\n", 3, "allow[0].ram", "about sessions"),
        ("[[allow]]\n\n[[allow]]\nusers = [1]\n", 3, "allow[1]", "no effect: rule 1"),
        (
            "[[allow]]\nusers = [1, 2]\n[[allow]]\nusers = [1]\nlabel = 'a'\n",
            3,
            "allow[1]",
            "rule 1",
        ),
        ("[other]\n", 1, "other", "no such key"),
        ("\nlimits.ram = '4 GB'\n", 2, "limits.ram", "'4 GB' is no size"),
        ("[[allow]]\nusers = []\n", 2, "allow[0].users", "names nobody"),
        ("[[allow]]\nusers = [1]\ngroups = []\n", 3, "allow[0].groups", "names nobody"),
        ("operators = ['@no-such']\n", 1, "operators", "no group 'no-such'"),
        ("operators = ['@4294967296']\n", 1, "operators", "4294967296 is no id"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    tmp_path: Path, text: str, line: int, key: str, why: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        policy_of(tmp_path, text)
    told = str(caught.value)
    assert caught.value.line == line, told
    assert told.startswith(f"{tmp_path / 'policy.toml'}:{line}: {key}")
    assert why in told


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read: No such file"):
        load(tmp_path / "none.toml", SETTINGS)
    (tmp_path / "binary").write_bytes(b"a = 1\n\xff\n")
    with pytest.raises(PolicyError, match=r"binary:2: is not UTF-8"):
        load(tmp_path / "binary", SETTINGS)
    (tmp_path / "big").write_bytes(b"#" * (1 << 21))
    with pytest.raises(PolicyError, match="more than 1048576 bytes"):
        load(tmp_path / "big", SETTINGS)


@pytest.mark.parametrize(
    ("written", "expected"),
    [(None, -1), (4096, 4096), ("4096", 4096), ("4 KiB", 4096), ("3GiB", 3 * GIB), (0, 0)],
)
def test_sizes(written: int | str | None, expected: int) -> None:
    assert size(written, (), -1) == expected


@pytest.mark.parametrize(
    ("written", "expected"), [("", set()), ("0", {0}), ("0-3,8", {0, 1, 2, 3, 8}), ("5, 7", {5, 7})]
)
def test_cpus(written: str, expected: set[int]) -> None:
    assert cpus(written, ()) == expected
