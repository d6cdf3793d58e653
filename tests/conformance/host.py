"""What the machine under the tests has, where an engine depends on it."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def hardware_virtualization() -> bool:
    """Whether KVM runs guests on VMX or SVM here; without, it emulates all but 64-bit ring 3."""
    cpu = Path("/proc/cpuinfo").read_text()
    flags = next(line for line in cpu.splitlines() if line.startswith("flags")).split()
    return "vmx" in flags or "svm" in flags
