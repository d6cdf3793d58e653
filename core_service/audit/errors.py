"""What can be wrong with the audit log."""

from __future__ import annotations

from pathlib import Path

from core_service.refusal import Refusal


class AuditError(Exception):
    """The store in `path` cannot be used, and `why`: for the operator, before core serves."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


class AuditFailure(Refusal):
    """The store cannot be written now, so that nothing may be made that it would not know. With `done`,
    what was asked for is done nevertheless, since the store failed meanwhile."""

    def __init__(self, why: str, *, done: bool = False) -> None:
        told = f"the audit log cannot be written: {why}"
        if done:
            super().__init__(
                "AUDIT_FAILURE", f"done, but not on record: {told}", why=why, done="yes"
            )
        else:
            super().__init__("AUDIT_FAILURE", told, why=why)
        self.why = why
