"""After core ended, its cgroup can take the next core, although engines are in the cgroups below."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cgroup2 import SCRIPT, hierarchy, release


@pytest.fixture
def delegated(tmp_path: Path) -> Iterator[Path]:
    """A cgroup as core leaves it: it limits what is below `engines`, by one controller."""
    root = hierarchy()
    if root is None:
        pytest.skip("no cgroup v2 here")
    delegable = (root / "cgroup.subtree_control").read_text().split()
    controllers = delegable or (root / "cgroup.controllers").read_text().split()
    if not controllers:
        pytest.skip("the cgroup v2 hierarchy has no controllers here")
    unit = root / f"vmsession-test-{tmp_path.name}"
    limiting = [*([] if delegable else [root]), unit, unit / "engines"]
    made = [unit, unit / ".control", unit / "engines", unit / "engines" / "one"]
    try:
        for cgroup in made:
            cgroup.mkdir()
        for cgroup in limiting:
            (cgroup / "cgroup.subtree_control").write_text(f"+{controllers[0]}")
        yield unit
    except PermissionError:
        pytest.skip("cgroups are not ours to make here")
    finally:
        for cgroup in reversed(made):
            with suppress(OSError):
                cgroup.rmdir()
        if not delegable:
            with suppress(OSError):
                (root / "cgroup.subtree_control").write_text(f"-{controllers[0]}")


def test_the_next_core_can_start_beside_engines(delegated: Path) -> None:
    engine = subprocess.Popen(["sleep", "60"])
    try:
        (delegated / "engines/one/cgroup.procs").write_text(str(engine.pid))
        with pytest.raises(OSError, match="busy"):
            (delegated / "cgroup.procs").write_text(str(engine.pid))
        release(delegated)
        (delegated / "cgroup.procs").write_text(str(engine.pid))
    finally:
        engine.kill()
        engine.wait()


def test_what_was_not_delegated_is_left_alone() -> None:
    assert subprocess.run([SCRIPT], timeout=50, check=False).returncode == 0
