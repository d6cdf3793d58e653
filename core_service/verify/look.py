"""One look at everything: what does not agree, and how much was compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

Check = Literal["ledger", "engine", "kernel", "quota", "chain"]

AT_ONCE: Final = 256  # objects compared before others have their turns


class Finding(NamedTuple):
    """What does not agree: what was compared, the object, and what is expected and there."""

    check: Check
    subject: str
    message: str


@dataclass
class Look:
    """What one round found. A finding may be of something that moved meanwhile."""

    findings: set[Finding] = field(default_factory=set)
    mappings: int = 0
    descriptors: int = 0
    accounts: int = 0

    def wrong(self, check: Check, subject: str, message: str) -> None:
        """Note a finding."""
        self.findings.add(Finding(check, subject, message))
