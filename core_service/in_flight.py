"""File descriptors on their way over a UNIX socket."""

from __future__ import annotations

import errno
from typing import Final

FOR_NOW: Final = frozenset({errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})
"""What the kernel says when there are too many, of all of core's user: no fault of whom they are for."""
