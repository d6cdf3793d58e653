"""The cost of one port I/O exit: what `out` takes a guest, from instruction to instruction."""

from __future__ import annotations

from tests.benchmarks.c_vmm import c_vmm, load_c_vmm
from tests.benchmarks.guest import guest
from tests.benchmarks.helper import Helper, compile_helper
from tests.benchmarks.result import Result
from tests.benchmarks.rounds import in_turns
from tests.benchmarks.workplace import Benchmark, Workplace

UNIT = "ns"


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
                "bare": lambda: float(bare.ask(f"exits {exits}")),
                "python": lambda: running.serve(exits),
                "c": lambda: in_c.serve(exits),
                "plain": lambda: float(bare.ask(f"plain {exits}")),
            },
        )
    floor = "kvm.port_exit.bare"
    return [
        Result.of(floor, UNIT, samples["bare"]),
        Result.compared(
            "kvm.port_exit.python_vmm", UNIT, samples["python"], floor, samples["bare"]
        ),
        Result.compared("kvm.port_exit.c_vmm", UNIT, samples["c"], floor, samples["bare"]),
        Result.compared(
            "kvm.port_exit.bare_without_registers", UNIT, samples["plain"], floor, samples["bare"]
        ),
    ]


def measure_soft(at: Workplace) -> list[Result]:
    """Its floor is the handover in C: the CPU itself takes 30 ns."""
    exits = at.effort.exits
    library = load_c_vmm(at.directory)
    with guest(at.core, "soft") as running, c_vmm(library, running.vcpu) as in_c:
        samples = in_turns(
            at.effort.rounds,
            {"c": lambda: in_c.serve(exits), "python": lambda: running.serve(exits)},
        )
    floor = "soft.port_exit.c_vmm"
    return [
        Result.of(floor, UNIT, samples["c"]),
        Result.compared("soft.port_exit.python_vmm", UNIT, samples["python"], floor, samples["c"]),
    ]


KVM = Benchmark(
    (
        "kvm.port_exit.bare",
        "kvm.port_exit.python_vmm",
        "kvm.port_exit.c_vmm",
        "kvm.port_exit.bare_without_registers",
    ),
    measure_kvm,
    engine="kvm",
)
SOFT = Benchmark(("soft.port_exit.c_vmm", "soft.port_exit.python_vmm"), measure_soft, engine="soft")
