"""One guest on two engines, compared exit by exit or instruction by instruction.

    with Side(core, "soft", guest) as one, Side(core, "kvm", guest) as other:
        outcome = Lockstep(one, other, step=True).run()

What is compared, and what is not: docs/diff.md.
"""

from vmm_client.diff.guest import DiffMode, Guest
from vmm_client.diff.lockstep import Lockstep, Outcome
from vmm_client.diff.side import Side

__all__ = ["DiffMode", "Guest", "Lockstep", "Outcome", "Side"]
