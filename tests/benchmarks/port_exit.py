"""The cost of one port I/O exit: what `out` takes a guest, from instruction to instruction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tests.benchmarks.c_vmm import c_vmm, load_c_vmm
from tests.benchmarks.guest import guest
from tests.benchmarks.helper import Helper, compile_helper
from tests.benchmarks.result import Result
from tests.benchmarks.rounds import in_turns
from tests.benchmarks.workplace import Benchmark, Workplace

UNIT: Final = "ns"
KVM_FLOOR: Final = "kvm.port_exit.bare"
SOFT_FLOOR: Final = "soft.port_exit.c_vmm"


def measure_kvm(at: Workplace) -> list[Result]:
    """Ours beside a bare loop around KVM_RUN."""
    exits = at.effort.exits
    library = load_c_vmm(at.directory)
    with (
        Helper([compile_helper("bare_kvm.c", at.directory)]) as bare,
        guest(at.core, "kvm") as running,
        c_vmm(library, running.vcpu) as in_c,
    ):
        samples = in_turns(
            at.effort.rounds,
            {
                KVM_FLOOR: lambda: float(bare.ask(f"exits {exits}")),
                "kvm.port_exit.python_vmm": lambda: running.serve(exits),
                "kvm.port_exit.c_vmm": lambda: in_c.serve(exits),
                "kvm.port_exit.bare_without_registers": lambda: float(bare.ask(f"plain {exits}")),
            },
        )
    return beside(KVM_FLOOR, samples)


def measure_soft(at: Workplace) -> list[Result]:
    """Its floor is the handover in C: the CPU itself takes 30 ns."""
    exits = at.effort.exits
    library = load_c_vmm(at.directory)
    with guest(at.core, "soft") as running, c_vmm(library, running.vcpu) as in_c:
        samples = in_turns(
            at.effort.rounds,
            {
                SOFT_FLOOR: lambda: in_c.serve(exits),
                "soft.port_exit.python_vmm": lambda: running.serve(exits),
            },
        )
    return beside(SOFT_FLOOR, samples)


def beside(floor: str, samples: Mapping[str, list[float]]) -> list[Result]:
    """The floor, and all others compared with it: the medians, and the best of ours."""
    results = [Result.of(floor, UNIT, samples[floor])]
    for name, ours in samples.items():
        if name == floor:
            continue
        results.append(Result.compared(name, UNIT, ours, floor, samples[floor]))
        if name.endswith("_vmm"):
            results.append(Result.best(name, UNIT, ours, floor, samples[floor]))
    return results


KVM = Benchmark(
    (
        KVM_FLOOR,
        "kvm.port_exit.python_vmm",
        "kvm.port_exit.python_vmm.best",
        "kvm.port_exit.c_vmm",
        "kvm.port_exit.c_vmm.best",
        "kvm.port_exit.bare_without_registers",
    ),
    measure_kvm,
    engine="kvm",
)
SOFT = Benchmark(
    (SOFT_FLOOR, "soft.port_exit.python_vmm", "soft.port_exit.python_vmm.best"),
    measure_soft,
    engine="soft",
)
