"""Which files are kept."""

from __future__ import annotations

from pathlib import Path

from core_service.audit.schema import files_of


def remove_old(directory: Path, keep: int) -> None:
    """Leave the newest `keep` files (0: all). What still lives was carried into them."""
    if keep:
        for path in files_of(directory)[:-keep]:
            # the name that makes it one of the store goes first
            for part in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
                part.unlink(missing_ok=True)
