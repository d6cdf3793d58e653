"""The cgroups of engines, below the one that core was given."""

from core_service.cgroups.cgroup import Cgroup
from core_service.cgroups.cgroups import Cgroups
from core_service.cgroups.delegation import delegated

__all__ = ["Cgroup", "Cgroups", "delegated"]
