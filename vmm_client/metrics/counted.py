"""Sums that only grow, over vCPUs that come and go.

Core tells how many exits each vCPU had, modulo 2^32, and forgets that with the vCPU; a counter must
not fall. So what was added since the last look is added up here. What a vCPU did after the last look at
it is not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

from vmsession.v1.vm_session_pb2 import Session, Vcpu

Of = tuple[str, str]
"""Engine and user, as labels."""

USERS: Final = 100
OTHERS: Final = "other"


class Seen(NamedTuple):
    """What was told of a vCPU last."""

    exits: int
    run_time_ns: int


class Counted:
    """Exits and run time by engine and user, since this was made. The first users that come have sums of
    their own, for good; those after the hundredth have one together."""

    def __init__(self) -> None:
        self.exits: Counter[Of] = Counter()
        self.run_time_ns: Counter[Of] = Counter()
        self._seen: dict[str, Seen] = {}
        self._users: set[int] = set()

    def add(self, vcpus: Iterable[tuple[Session, Vcpu]]) -> None:
        """Take in a look at all vCPUs."""
        seen = {}
        for session, vcpu in vcpus:
            before = self._seen.get(vcpu.name, Seen(0, 0))
            run_time_ns = vcpu.run_time_ns if vcpu.HasField("run_time_ns") else before.run_time_ns
            seen[vcpu.name] = Seen(vcpu.exits, run_time_ns)
            of = (session.engine, self._label(session.client.uid))
            self.exits[of] += (vcpu.exits - before.exits) % (1 << 32)
            self.run_time_ns[of] += max(0, run_time_ns - before.run_time_ns)
        self._seen = seen

    def _label(self, uid: int) -> str:
        if uid not in self._users and len(self._users) >= USERS:
            return OTHERS
        self._users.add(uid)
        return str(uid)
