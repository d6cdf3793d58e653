"""What is wrong with a policy."""

from __future__ import annotations

from pathlib import Path

Where = tuple[str | int, ...]


class PolicyError(Exception):
    """The file cannot be used. `where` is the path of the key, as in ("allow", 0, "users")."""

    def __init__(
        self, why: str, where: Where = (), line: int = 0, file: Path | None = None
    ) -> None:
        place = ":".join(str(part) for part in (file, line) if part)
        super().__init__(": ".join(part for part in (place, _key(where), why) if part))
        self.why = why
        self.where = where
        self.line = line
        self.file = file


def _key(where: Where) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(
        "."
    )
