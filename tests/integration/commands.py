"""The commands as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent


def vmm(
    *arguments: object, socket: Path | None = None, timeout: float = 50
) -> subprocess.CompletedProcess[str]:
    """Run `vmm`."""
    environment = dict(os.environ)
    if socket:
        environment["VMSESSION_SOCKET"] = str(socket)
    return subprocess.run(
        [BIN / "vmm", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=timeout,
        check=False,
    )
