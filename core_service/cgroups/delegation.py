"""Whether core was given the cgroup that it is in.

Whoever manages the hierarchy says so by an extended attribute: systemd (251 and later) does it for units
with Delegate=, and any other manager can. A cgroup without it is somebody else's, also where root could
change it, and is left alone.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

CORE: Final = "core"
MARK: Final = "user.delegate"
OWN: Final = Path("/proc/self")


def delegated(own: Path = OWN) -> Path | None:
    """The directory of the cgroup that was given to core: the one that this process is in, or the one
    above, where it was started in its part of that already (systemd's DelegateSubgroup=core)."""
    found = cgroup_of(own)
    if found and _marked(found):
        return found
    if found and found.name == CORE and _marked(found.parent):
        return found.parent
    return None


def _marked(cgroup: Path) -> bool:
    with suppress(OSError):  # it has no such attribute
        return os.getxattr(cgroup, MARK) == b"1"
    return False


def cgroup_of(own: Path = OWN) -> Path | None:
    """The directory of a process's cgroup v2, by its directory in /proc; None where there is none, or
    none to be seen."""
    with suppress(OSError):
        for line in (own / "cgroup").read_text().splitlines():
            if line.startswith("0::/"):
                within = Path(line.removeprefix("0::"))
                return next((path for path in _candidates(own, within) if path.is_dir()), None)
    return None


def _candidates(own: Path, within: Path) -> Iterator[Path]:
    """By each mount of the hierarchy (proc(5), mountinfo): it may show a part of it only."""
    for line in (own / "mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        _, _, _, root, where, *_ = before.split()
        if after.startswith("cgroup2 ") and within.is_relative_to(root):
            yield Path(where) / within.relative_to(root)
