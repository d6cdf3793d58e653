"""What this host offers to KVM, as far as anybody may see it: no privilege, no core needed."""

from __future__ import annotations

import grp
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEVICE: Final = Path("dev/kvm")
MODULES: Final = Path("sys/module")
CPUINFO: Final = Path("proc/cpuinfo")

VENDOR_MODULES: Final = ("kvm_intel", "kvm_amd", "kvm_pvm")
KVM_GROUP_MODE: Final = stat.S_IRGRP | stat.S_IWGRP


@dataclass(frozen=True, slots=True)
class Host:
    """`problem` is empty where KVM is there for a core in the group that owns the device; `advice`
    what to do otherwise. `module` is what KVM works with: kvm_intel, kvm_amd, kvm_pvm, or empty."""

    problem: str
    advice: str
    module: str


def look(root: Path = Path("/")) -> Host:
    """Look at the host below `root`. Starts and opens nothing."""
    module = next((name for name in VENDOR_MODULES if (root / MODULES / name).is_dir()), "")
    try:
        status = (root / DEVICE).stat()
    except OSError:
        return Host("there is no /dev/kvm", _how_to_get_it(root), module)
    if status.st_mode & KVM_GROUP_MODE != KVM_GROUP_MODE:
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        advice = "only a core run by its owner can use it: chgrp kvm /dev/kvm; chmod 0660 /dev/kvm"
        return Host(f"/dev/kvm has mode {mode}", advice, module)
    return Host("", f"run core in group {_group(status.st_gid)}", module)


def _how_to_get_it(root: Path) -> str:
    try:
        flags = (root / CPUINFO).read_text().split()
    except OSError:
        flags = []
    for flag, module in (("vmx", "kvm_intel"), ("svm", "kvm_amd")):
        if flag in flags:
            return f"load it: modprobe {module}"
    return "this CPU offers no virtualisation (or firmware, or an outer VM, hides it): use `soft`"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
