"""Compiling the engines: what goes wrong is one clear line, and leaves nothing behind."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from core_service.engine.native import build

KVM = build.ENGINES[0]


def test_no_compiler_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    with pytest.raises(build.BuildError, match="'no-such-compiler' is not in PATH; install gcc"):
        build.compiler()


def test_a_compiler_with_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "gcc -m64")
    assert build.compiler() == ["gcc", "-m64"]


def test_a_failed_build_leaves_the_engine_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "false")
    engine = tmp_path / KVM.executable
    engine.write_text("the old one")
    with pytest.raises(build.BuildError, match="vmsession-kvm: false failed"):
        build.build(KVM, tmp_path)
    assert list(tmp_path.iterdir()) == [engine]
    assert engine.read_text() == "the old one"


def test_a_build_is_executable_and_alone(tmp_path: Path) -> None:
    target = build.build(KVM, tmp_path / "bin")
    assert list((tmp_path / "bin").iterdir()) == [target]
    assert target.stat().st_mode & stat.S_IXUSR


def test_unknown_engine_is_refused_by_name() -> None:
    ran = subprocess.run(
        [sys.executable, build.NATIVE / "build.py", "vmx"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    assert "vmx" in ran.stderr
    assert "kvm" in ran.stderr
