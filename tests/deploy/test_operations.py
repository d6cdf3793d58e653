"""docs/operations.md, word for word, on a Debian whose systemd is booted for it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.deploy.debian import Booted, bootstrap, copy_source, why_not
from tests.deploy.staging import DEPLOY, ROOT
from tests.integration.commands import BIN
from tests.integration.running_core import RunningCore
from tests.integration.waiting import eventually

GUIDE: Final = (ROOT / "docs/operations.md").read_text()
UPGRADE: Final = "systemctl restart vmsession"
KEPT: Final = "--keep" in (DEPLOY / "systemd/vmsession.service").read_text()
SCRAPE: Final = (
    "python3 -c 'import urllib.request as r;"
    ' print(r.urlopen("http://127.0.0.1:9464/metrics", timeout=5).read().decode())\''
)
DRAIN: Final = "vmcore drain"
SOURCE: Final = "usr/local/src/vmsession"
PACKAGES: Final = (
    *(
        "systemd",
        "systemd-sysv",
        "dbus",
        "udev",
        "passwd",
        "util-linux",
        "procps",
        "ca-certificates",
    ),
    *("git", "make", "gcc", "libc6-dev", "python3", "python3-dev", "python3-venv"),
)
# A guest that never ends: cli; jmp to itself.
FOREVER: Final = r"printf '\372\353\376' >forever.bin"


class Line(NamedTuple):
    """A command of the guide, and whose it is."""

    user: str
    command: str


def lines() -> list[Line]:
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            user, command = re.fullmatch(r"(#|\w+\$) (.*)", line).groups()  # type: ignore[union-attr]
            found.append(Line("root" if user == "#" else user.removesuffix("$"), command))
    return found


def test_the_guide_has_commands_of_root_and_of_two_users() -> None:
    assert {line.user for line in lines()} == {"root", "alice", "bob"}
    assert len(lines()) > 25


def test_what_the_guide_names_is_there() -> None:
    for name in re.findall(r"deploy/[\w./-]+", GUIDE):
        assert (ROOT / name).exists(), name
    for unit in re.findall(r"vmsession[\w-]*\.(?:service|socket)", GUIDE):
        assert (DEPLOY / "systemd" / unit).exists(), unit
    for link in re.findall(r"\]\(([^)]+)\)", GUIDE):
        assert (ROOT / "docs" / link).exists(), link


def test_what_needs_no_installation_works_on_any_core(core: RunningCore, tmp_path: Path) -> None:
    """The rest, and the same as the users that they name, is for the soak test."""
    environment = os.environ | {
        "VMSESSION_SOCKET": str(core.socket),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
    }
    ran = 0
    for line in dict.fromkeys(line.command for line in lines()):
        if re.match(r"vmm (?!doctor)|printf ", line):
            command = line.replace("/root/", f"{tmp_path}/")
            completed = subprocess.run(
                ["sh", "-c", command],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=50,
                check=False,
            )
            assert (completed.returncode, completed.stderr) == (0, ""), command
            ran += 1
            if command.startswith("vmm run"):
                assert completed.stdout == "Hi\n"
    assert ran > 8
    exported = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert [json.loads(each)["revision"] for each in exported] == [*range(1, len(exported) + 1)]


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    if reason := why_not():
        pytest.skip(reason)
    root = tmp_path_factory.mktemp("debian") / "root"
    bootstrap(root, "apt", *PACKAGES)
    copy_source(root / SOURCE)
    for unit in ("systemd-udev-trigger.service", "systemd-modules-load.service"):
        (root / "etc/systemd/system" / unit).symlink_to(
            "/dev/null"
        )  # the host's devices are its own
    booted = Booted(root, root.parent / "log")
    try:
        yield booted
    finally:
        booted.close()


@pytest.mark.soak
def test_every_command_of_the_guide_works(debian: Booted) -> None:
    """With a machine of Alice's that goes on through the upgrade, and that core ends when it drains."""
    for line in lines():
        before = ""
        if line.command == UPGRADE:
            must(debian, "alice", FOREVER)
            guest = debian.start("vmm run forever.bin --engine soft", "alice")
            before = session(debian) if KEPT else ""
        status, said = debian.run(without_time(line.command), line.user)
        expected = {0, 3} if line.command.startswith(DRAIN) else {0}
        assert status in expected, f"{line}: {status}\n{said}\n{journal(debian)}"
        if before:
            assert session(debian) == before
            assert guest.poll() is None
    assert guest.wait(60) != 0
    eventually(lambda: "vmsession_up 1.0" in debian.run(SCRAPE)[1], lambda: journal(debian), 30)
    exposure = debian.run("systemd-analyze security vmsession.service --threshold=15")
    assert exposure[0] == 0, exposure[1]


def without_time(command: str) -> str:
    """Nobody waits five minutes for a guest that never ends."""
    return command.replace("--within 300", "--within 2")


def must(debian: Booted, user: str, command: str) -> str:
    status, said = debian.run(command, user)
    assert status == 0, said
    return said


def session(debian: Booted) -> str:
    """The name of Alice's session, once it is there."""

    def names() -> list[str]:
        return re.findall(r"^sessions/\w+", debian.run("vmm sessions", "alice")[1], re.MULTILINE)

    eventually(lambda: len(names()) == 1, lambda: journal(debian), limit=30)
    return names()[0]


def journal(debian: Booted) -> str:
    return debian.run("journalctl --unit 'vmsession*' --no-pager --lines 40")[1]
