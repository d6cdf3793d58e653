"""The units, as systemd's own tools judge them: no system manager is needed."""

from __future__ import annotations

import configparser
import grp
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.staging import DEPLOY, make, with_host_units
from tests.integration.commands import BIN

SYSTEMD = DEPLOY / "systemd"
UNITS = sorted(path.name for path in SYSTEMD.iterdir())
SERVICES = [name for name in UNITS if name.endswith(".service")]
MOST_EXPOSURE = 15  # tenths, of 100

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze here"
)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    make("install-files", tmp_path)
    with_host_units(tmp_path)
    return tmp_path


def verify(stage: Path) -> subprocess.CompletedProcess[str]:
    return run("systemd-analyze", f"--root={stage}", "verify", "--man=no", *UNITS)


def test_systemd_has_nothing_to_say_about_the_units(stage: Path) -> None:
    said = verify(stage)
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


def test_systemd_would_tell_of_an_unknown_key(stage: Path) -> None:
    with (stage / "usr/local/lib/systemd/system/vmsession.service").open("a") as unit:
        unit.write("[Service]\nProtectEverything=yes\n")
    assert "ProtectEverything" in verify(stage).stderr


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_exposed_little(service: str) -> None:
    said = run(
        *("systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSURE}"),
        SYSTEMD / service,
    )
    assert said.returncode == 0, said.stdout


def test_the_users_are_made_as_the_units_name_them(tmp_path: Path) -> None:
    if shutil.which("systemd-sysusers") is None:
        pytest.skip("no systemd-sysusers here")
    (tmp_path / "etc").mkdir()
    made = run("systemd-sysusers", f"--root={tmp_path}", DEPLOY / "sysusers.d/vmsession.conf")
    assert made.returncode == 0, made.stderr
    users = {line.split(":")[0] for line in (tmp_path / "etc/passwd").read_text().splitlines()}
    groups = {
        name: members
        for name, _, _, members in (
            line.split(":") for line in (tmp_path / "etc/group").read_text().splitlines()
        )
    }
    for name in UNITS:
        unit = read(name)
        section = unit["Service"] if name in SERVICES else unit["Socket"]
        assert {section.get("User"), section.get("SocketUser")} - {None} <= users
        named = {
            section.get("Group"),
            section.get("SocketGroup"),
            section.get("SupplementaryGroups"),
        }
        assert named - {None} <= set(groups)
    assert groups["kvm"] == "vmsession"


def test_the_sockets_have_a_directory(tmp_path: Path) -> None:
    if shutil.which("systemd-tmpfiles") is None:
        pytest.skip("no systemd-tmpfiles here")
    line = (DEPLOY / "tmpfiles.d/vmsession.conf").read_text().splitlines()[-1]
    kind, directory, mode, user, group, _ = line.split()
    assert (kind, mode, user, group) == ("d", "0755", "vmsession", "vmsession")
    mine = tmp_path / "vmsession.conf"
    mine.write_text(f"{kind} {directory} {mode} root {grp.getgrgid(0).gr_name} -\n")
    made = run("systemd-tmpfiles", f"--root={tmp_path}", "--create", mine)
    if made.returncode:
        pytest.skip(f"systemd-tmpfiles cannot make it: {made.stderr}")
    assert (tmp_path / directory.removeprefix("/")).stat().st_mode & 0o777 == 0o755
    for name in UNITS:
        if name.endswith(".socket"):
            (address,) = {
                value for key, value in read(name)["Socket"].items() if key.startswith("Listen")
            }
            assert address.startswith(f"{directory}/")


def test_machines_outlive_core_if_it_can_keep_them() -> None:
    """What `--keep` needs of the unit: nobody else ends the engines and the keeper."""
    service = read("vmsession.service")["Service"]
    assert service["KillMode"] == "process"
    assert service["OOMPolicy"] == "continue"
    assert "RuntimeDirectory" not in service
    assert ("--keep" in service["ExecStart"]) == ("--keep" in options("serve"))


@pytest.mark.parametrize("service", SERVICES)
def test_the_commands_know_the_options(service: str) -> None:
    program, command, *words = shlex.split(read(service)["Service"]["ExecStart"])
    used = {word for word in words if word.startswith("--")}
    assert used <= options(command, Path(program).name)


def options(command: str, program: str = "vmcore") -> set[str]:
    """The options that a command tells in its help."""
    helped = run(BIN / program, command, "--help")
    assert helped.returncode == 0
    return set(re.findall(r"--[a-z][a-z-]*", helped.stdout))


def read(name: str) -> configparser.ConfigParser:
    """A unit; of a key that stands there often, the last."""
    unit = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes=("#",))
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    text = (SYSTEMD / name).read_text().replace("\\\n", " ")
    unit.read_string(text)
    return unit
