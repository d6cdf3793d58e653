"""A whole installation: may the caller connect, is the policy valid, has core what it needs, are its
engines locked up. All of it by what anybody may see; nothing is changed."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from vmm_client.doctor import kernel
from vmm_client.doctor.check import Check
from vmm_client.doctor.processes import Process, core_of, engines, keepers
from vmm_client.errors import CoreUnavailable, VmsessionError
from vmm_client.health import WHOLE, serving

DEVICE: Final = Path("/dev/kvm")
POLICY: Final = "/etc/vmsession/policy.toml"
UNITS: Final = Path("/run/systemd/system")
OWN, ENGINES = "core", "engines"  # the parts of core's cgroup
CONTROLLERS: Final = ("memory", "cpu", "cpuset", "pids")
LEAST_DESCRIPTORS: Final = 16_384
LEAST_SPACE: Final = 1 << 30
SECONDS: Final = 20.0


def examine_installation(socket: str) -> Iterator[Check]:
    """Look at the installation that serves, or should serve, at `socket`."""
    path = Path(socket).absolute()
    yield _caller()
    yield _socket(path)
    yield from _health(socket)
    core = core_of(path.parent)
    yield _unit(core)
    yield from _policy(core)
    if core:
        yield from _of_core(core)
    yield from kernel.features()


def _caller() -> Check:
    groups = ", ".join(sorted(_group(gid) for gid in {os.getegid(), *os.getgroups()}))
    return Check("you", "user and groups", True, f"{_user(os.geteuid())}, of {groups}")


def _socket(path: Path) -> Check:
    try:
        status = path.stat()
    except OSError as error:
        return Check(
            "socket", str(path), False, f"{error.strerror}: systemctl start vmsession.socket"
        )
    group, mode = _group(status.st_gid), stat.S_IMODE(status.st_mode)
    who = f"{_user(status.st_uid)}:{group} {mode:04o}"
    if os.access(path, os.W_OK):
        return Check("socket", str(path), True, who)
    advice = f"as root: usermod --append --groups {group} {_user(os.geteuid())}; then log in again"
    return Check("socket", str(path), False, f"{who}; {advice}")


def _health(socket: str) -> Iterator[Check]:
    try:
        told = serving(socket)
    except CoreUnavailable as error:
        yield Check("core", "serves", False, f"{error.why}; {error.hint}")
        return
    except VmsessionError as error:
        yield Check("core", "serves", False, str(error))
        return
    lacking = [name for name, serves in told.items() if not serves and name != WHOLE]
    advice = f"{', '.join(lacking)} does not: journalctl --unit vmsession tells why"
    yield Check("core", "serves", told[WHOLE], "" if told[WHOLE] else advice)


def _unit(core: Process | None) -> Check:
    if not UNITS.is_dir():
        return Check("core", "systemd unit", None, "this system does not run systemd")
    state = _said("systemctl", "is-active", "vmsession.service")[1]
    if state == "active" or core is None:
        advice = "" if state == "active" else "; systemctl enable --now vmsession.service"
        return Check("core", "systemd unit", state == "active", f"{state}{advice}")
    return Check("core", "systemd unit", None, f"{state}; this core was started by hand")


def _policy(core: Process | None) -> Iterator[Check]:
    named = core.option("--policy") if core else POLICY
    if core and not named:
        yield Check("policy", "file", None, "none: everybody who can connect, with core's limits")
    elif not Path(named).exists() and not core:
        yield Check("policy", named, None, "there is none here")
    elif not os.access(named, os.R_OK):
        yield Check("policy", named, None, "you may not read it")
    else:
        status, said = _said(Path(sys.executable).parent / "vmcore", "check-config", named)
        yield Check("policy", named, status == 0, "" if status == 0 else said)


def _of_core(core: Process) -> Iterator[Check]:
    yield Check("core", "process", True, f"{core.pid}, of {_user(core.uid)}")
    yield _privilege(core)
    yield _device(core)
    yield _descriptors(core)
    yield _space(core)
    yield _keeper(core)
    yield _delegation(core)
    yield from _engines(core)


def _privilege(core: Process) -> Check:
    if core.uid == 0:
        return Check(
            "core", "privilege", None, "it runs as root: deploy/systemd has a unit with a user"
        )
    if core.gains_nothing and core.filtered:
        return Check("core", "privilege", True, "none; no_new_privs, system calls filtered")
    return Check("core", "privilege", None, "started without the unit's confinement")


def _device(core: Process) -> Check:
    try:
        status = DEVICE.stat()
    except OSError:
        return Check("core", str(DEVICE), None, "there is none: the engine soft needs none")
    group, mode = _group(status.st_gid), stat.S_IMODE(status.st_mode)
    if core.uid == 0 or _may_use(core, status):
        return Check("core", str(DEVICE), True, f"{group} {mode:04o}")
    advice = f"as root: usermod --append --groups {group} {_user(core.uid)}; then restart core"
    if not mode & stat.S_IWGRP:
        advice = f"it has mode {mode:04o}: udevadm trigger {DEVICE}, after make install"
    return Check("core", str(DEVICE), False, advice)


def _may_use(core: Process, device: os.stat_result) -> bool:
    """As the kernel decides: the first of owner, group and others that fits."""
    if device.st_uid == core.uid:
        return device.st_mode & 0o600 == 0o600
    if device.st_gid in core.groups:
        return device.st_mode & 0o060 == 0o060
    return device.st_mode & 0o006 == 0o006


def _descriptors(core: Process) -> Check:
    most = core.descriptors
    if most is None:
        return Check("core", "file descriptors", None)
    works = most >= LEAST_DESCRIPTORS
    advice = (
        "" if works else f"; LimitNOFILE={LEAST_DESCRIPTORS} or more: most capabilities are one"
    )
    return Check("core", "file descriptors", works, f"{most}{advice}")


def _space(core: Process) -> Check:
    """The log's directory is core's alone, but its file system can be asked where it begins."""
    directory = Path(core.option("--audit-directory") or "/var/lib/vmsession")
    for part in (directory, *directory.parents):
        with suppress(OSError):
            there = os.statvfs(part)
            free = there.f_bavail * there.f_frsize
            advice = "" if free >= LEAST_SPACE else ": make room, without it nothing new is made"
            told = f"{free / LEAST_SPACE:.1f} GiB free{advice}"
            return Check("audit log", str(directory), free >= LEAST_SPACE, told)
    return Check("audit log", str(directory), None)


def _keeper(core: Process) -> Check:
    if core.option("--keep") in {"", "0"}:
        return Check(
            "core", "keeper", None, "none, machines end with core: vmcore serve --keep SECONDS"
        )
    found = keepers(core.uid)
    advice = "there is none, core's log tells why: machines would end with core"
    return Check("core", "keeper", bool(found), f"{found[0].pid}" if found else advice)


def _delegation(core: Process) -> Check:
    """Core divides the cgroup that it was given: it sits in one part, its engines in the other."""
    own = core.cgroup
    if own is None:
        return Check("core", "cgroup", None, "not below a cgroup v2 that can be seen")
    engines = own.parent / ENGINES
    if own.name != OWN or not engines.is_dir():
        advice = "no limits for engines: the unit's Delegate=yes, of systemd 251 or later"
        return Check("core", "cgroup", None, f"{own} was not given to core; {advice}")
    switches = engines / "cgroup.subtree_control"
    try:
        limits = switches.read_text().split()
    except OSError:
        return Check("core", "cgroup", None, f"{switches} is not for you to read: ask as root")
    if lacking := [each for each in CONTROLLERS if each not in limits]:
        told = f"{engines}: no limits by {', '.join(lacking)}, core's log tells why"
        return Check("core", "cgroup", None, told)
    return Check("core", "cgroup", True, f"{engines}: {', '.join(CONTROLLERS)}")


def _engines(core: Process) -> Iterator[Check]:
    for engine in engines(core.uid):
        locked = engine.gains_nothing and engine.filtered
        what = "no_new_privs, system calls filtered" if locked else "not confined: see core's log"
        yield Check("engine", f"{engine.name} {engine.pid}", locked, what)


def _said(*command: str | Path) -> tuple[int, str]:
    """Exit status and output of a command, on one line."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, str(error)
    return ran.returncode, "; ".join((ran.stdout + ran.stderr).split("\n")).strip("; ")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
