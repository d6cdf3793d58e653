"""The committed gRPC code is what the .proto files give."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, ROOT / "proto" / "generate.py", tmp_path],
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        check=True,
        timeout=50,
    )
    committed = contents(ROOT / "proto" / "gen" / "vmsession")
    assert contents(tmp_path / "vmsession") == committed
    assert len(committed) > 20
