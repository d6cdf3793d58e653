"""`make install` and `make uninstall`, but for the programs: those a soak test installs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.deploy.staging import DEPLOY, files_below, make

POLICY = "etc/vmsession/policy.toml"


def test_every_file_of_deploy_is_installed(tmp_path: Path) -> None:
    make("install-files", tmp_path)
    installed = {Path(name).name for name in files_below(tmp_path)}
    for kind in ("systemd/*", "libexec/*", "sysusers.d/*", "tmpfiles.d/*", "udev/*", "policy/*"):
        assert {path.name for path in DEPLOY.glob(kind)} <= installed


def test_a_prefix_is_told_to_the_units(tmp_path: Path) -> None:
    make("install-files", tmp_path, "PREFIX=/opt/vm")
    units = tmp_path / "opt/vm/lib/systemd/system"
    assert "ExecStart=/opt/vm/bin/vmcore serve " in (units / "vmsession.service").read_text()
    assert all("/usr/local" not in unit.read_text() for unit in units.iterdir())


def test_the_operators_policy_stays(tmp_path: Path) -> None:
    make("install-files", tmp_path)
    policy = tmp_path / POLICY
    assert policy.read_text() == (DEPLOY / "policy/team-host.toml").read_text()
    policy.write_text("# mine\n")
    make("install-files", tmp_path)
    assert policy.read_text() == "# mine\n"


def test_uninstalling_leaves_the_policy_alone(tmp_path: Path) -> None:
    make("install-files", tmp_path)
    make("uninstall", tmp_path)
    assert files_below(tmp_path) == {POLICY}


@pytest.mark.soak
def test_the_programs_run_from_where_they_are_installed(tmp_path: Path) -> None:
    """Twice: the second installation replaces the first. With PREFIX and not DESTDIR, since a virtual
    environment runs only where it was made for."""
    for _ in range(2):
        subprocess.run(
            ["make", "install-programs", f"PREFIX={tmp_path}"],
            cwd=DEPLOY.parent,
            timeout=600,
            check=True,
        )
    for command in ("vmcore", "vmm"):
        told = subprocess.run(
            [tmp_path / "bin" / command, "--version"],
            cwd="/",
            capture_output=True,
            text=True,
            timeout=50,
            check=True,
        )
        assert told.stdout.strip()
    assert not list(tmp_path.glob("lib/vmsession.*"))
    assert not (tmp_path / "lib/vmsession/bin/pip").exists()
    make("uninstall", Path("/"), f"PREFIX={tmp_path}")
    assert files_below(tmp_path) == set()
