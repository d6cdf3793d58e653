"""Where core listens, and why it cannot be reached there."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import stat
from pathlib import Path
from typing import Final

from vmm_client.errors import CoreUnavailable

SOCKET_VARIABLE: Final = "VMSESSION_SOCKET"
SYSTEM_SOCKET: Final = "/run/vmsession/core.sock"
CONNECT_SECONDS: Final = 5.0
START_IT = "start core with `vmcore serve`, or name its socket in $VMSESSION_SOCKET"


def socket_path() -> str:
    """$VMSESSION_SOCKET, else the user's own core if there is one, else the system's."""
    if path := os.environ.get(SOCKET_VARIABLE):
        return path
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")  # as core has it
    own = Path(runtime, "vmsession", "core.sock")
    # Not Path.exists: it raises where the directory is another user's, as the variable may be after su.
    return str(own) if os.access(own, os.F_OK) else SYSTEM_SOCKET


def check_reachable(path: str) -> None:
    """Raise CoreUnavailable, with what to do, unless somebody listens at `path`.

    gRPC itself would only say that it failed to connect.
    """
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(CONNECT_SECONDS)
            probe.connect(path)
    except OSError as error:
        why, hint = _diagnosis(Path(path), error)
        raise CoreUnavailable(path, why, hint) from error


def _diagnosis(path: Path, error: OSError) -> tuple[str, str]:
    """Why and what to do."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return "that is not a socket", START_IT
    except OSError as hidden:
        error = hidden
    match error:
        case FileNotFoundError():
            return "no such socket, core is not running", START_IT
        case PermissionError():
            return "permission denied", _who_may(path)
        case ConnectionRefusedError():
            return "nobody listens, core is not running any more", START_IT
        case TimeoutError():
            return "it accepts no connection", "see whether it still runs; its log tells more"
        case _:
            return error.strerror or str(error), START_IT


def _who_may(path: Path) -> str:
    """In words: the owner, group and mode of the nearest part of `path` that can be looked at."""
    for part in (path, *path.parents):
        try:
            status = part.stat()
        except OSError:
            continue
        return (
            f"{part} belongs to {_user(status.st_uid)}:{_group(status.st_gid)} with mode "
            f"{stat.S_IMODE(status.st_mode):04o}: become a member of that group and log in again"
        )
    return START_IT


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
