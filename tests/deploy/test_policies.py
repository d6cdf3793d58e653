"""The example policies, as core reads them: on a host that has the users and groups that they name."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.staging import DEPLOY
from tests.integration.running_core import VMCORE

EXAMPLES = sorted([*DEPLOY.glob("policy/*.toml"), DEPLOY / "container/policy.toml"])
GROUPS = ("vmsession-users", "vmsession-admin", "tenant-gold", "tenant-silver", "ci")
USERS = ("vmsession-metrics",)
# In a mount namespace, whose root need not be the host's, these users are there.
ENTER = """
mount --bind "$1/passwd" /etc/passwd && mount --bind "$1/group" /etc/group && shift && exec "$@"
"""


@pytest.fixture
def accounts(tmp_path: Path) -> Path:
    for name, extra in (("passwd", USERS), ("group", GROUPS)):
        known = Path("/etc", name).read_text()
        form = "{0}:x:{1}:{1}::/:/usr/sbin/nologin\n" if name == "passwd" else "{0}:x:{1}:\n"
        made = "".join(form.format(who, 64100 + n) for n, who in enumerate(extra))
        (tmp_path / name).write_text(known + made)
    return tmp_path


def check(policy: Path, accounts: Path) -> subprocess.CompletedProcess[str]:
    mapped = [] if os.geteuid() == 0 else ["--map-root-user"]
    return subprocess.run(
        [
            *("unshare", "--mount", *mapped, "sh", "-c", ENTER, "sh", str(accounts)),
            *(VMCORE, "check-config", "--json", str(policy)),
        ],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.mark.parametrize("policy", EXAMPLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_core_accepts_it(policy: Path, accounts: Path) -> None:
    checked = check(policy, accounts)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert json.loads(checked.stdout)


def test_core_would_tell_of_a_mistake(accounts: Path) -> None:
    wrong = accounts / "wrong.toml"
    wrong.write_text("[[allow]]\nsession = 3\n")
    assert "session" in check(wrong, accounts).stderr


def test_the_policy_of_the_manifests(accounts: Path) -> None:
    manifest: dict[str, Any] = yaml.safe_load((DEPLOY / "kubernetes/policy.yaml").read_text())
    for name, text in manifest["data"].items():
        (accounts / name).write_text(text)
        checked = check(accounts / name, accounts)
        assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("policy", EXAMPLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_users_that_it_names_are_made_by_somebody(policy: Path) -> None:
    """By sysusers.d, or by the operator who reads that they are tenants."""
    named = set(re.findall(r'"@?([a-z][\w-]*)"', policy.read_text())) - {"soft", "kvm", "root"}
    assert named <= {*USERS, *GROUPS, "ci-"}
