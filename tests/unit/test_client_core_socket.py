"""Where core is looked for, and what is said when it is not there."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vmm_client.connection import connect
from vmm_client.core_socket import SYSTEM_SOCKET, check_reachable, socket_path
from vmm_client.errors import CoreUnavailable


def trouble(path: Path | str) -> CoreUnavailable:
    with pytest.raises(CoreUnavailable) as caught:
        check_reachable(str(path))
    return caught.value


def test_the_variable_names_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMSESSION_SOCKET", "/somewhere/else")
    assert socket_path() == "/somewhere/else"


def test_the_user_s_own_core_comes_before_the_system_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("VMSESSION_SOCKET", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert socket_path() == SYSTEM_SOCKET
    own = tmp_path / "vmsession" / "core.sock"
    own.parent.mkdir()
    own.touch()
    assert socket_path() == str(own)


def test_without_a_runtime_directory_it_is_where_core_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VMSESSION_SOCKET", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("os.access", lambda _path, _mode: True)
    assert socket_path() == f"/run/user/{os.geteuid()}/vmsession/core.sock"
    monkeypatch.setattr("os.access", lambda _path, _mode: False)
    assert socket_path() == SYSTEM_SOCKET


def test_a_missing_socket_says_how_to_start_core(tmp_path: Path) -> None:
    error = trouble(tmp_path / "core.sock")
    assert str(error) == f"no core at {tmp_path}/core.sock: no such socket, core is not running"
    assert "vmcore serve" in error.hint


def test_a_file_is_no_socket(tmp_path: Path) -> None:
    (tmp_path / "core.sock").touch()
    assert trouble(tmp_path / "core.sock").why == "that is not a socket"


def test_a_socket_that_is_left_over_says_so(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(tmp_path / "core.sock"))
    assert "not running any more" in trouble(tmp_path / "core.sock").why


def test_a_path_that_is_too_long_for_a_socket_is_told(tmp_path: Path) -> None:
    assert trouble(tmp_path / ("x" * 120)).why == "no such socket, core is not running"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user here")
def test_who_may_not_connect_is_told_who_may(tmp_path: Path) -> None:
    path = tmp_path / "core.sock"
    for part in (tmp_path, *tmp_path.parents[:2]):
        part.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0o600)
        os.seteuid(64001)
        try:
            error = trouble(path)
        finally:
            os.seteuid(0)
    assert error.why == "permission denied"
    assert f"{path} belongs to root:root with mode 0600" in error.hint


def test_connect_fails_the_same_way_and_leaves_nothing(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(CoreUnavailable, match="no such socket"):
        connect(str(tmp_path / "core.sock"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
