"""Who may have how much, and who may see whom: the operator's file, and what follows from it."""

from core_service.policy.errors import PolicyError
from core_service.policy.policy import ClientLimits, Policy, SessionLimits, Sight
from core_service.policy.source import load

__all__ = ["ClientLimits", "Policy", "PolicyError", "SessionLimits", "Sight", "load"]
