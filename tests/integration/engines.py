"""The engines that must work on this machine."""

from __future__ import annotations

import os

import pytest

HAVE_KVM = os.access("/dev/kvm", os.R_OK | os.W_OK)

ENGINES = [
    pytest.param("kvm", marks=pytest.mark.skipif(not HAVE_KVM, reason="/dev/kvm cannot be opened")),
    "soft",
]
on_every_engine = pytest.mark.parametrize("engine", ENGINES)
