"""From nothing to a vCPU's first exit. Connecting is not counted."""

from __future__ import annotations

from time import perf_counter_ns
from typing import Final

from dataspace.vcpu_page import Reason
from tests.benchmarks.helper import Helper, compile_helper
from tests.benchmarks.result import Result
from tests.benchmarks.rounds import in_turns
from tests.benchmarks.workplace import Benchmark, Workplace
from vmm_client import Connection

MEMORY: Final = 64 << 20
ROUNDS_AT_LEAST: Final = 20
UNIT: Final = "ms"


def open_to_first_exit(core: Connection, engine: str) -> float:
    """A session, memory, a vCPU and its STARTUP: milliseconds."""
    start = perf_counter_ns()
    with core.create_session(engine, label="bench") as session, core.create_ram(MEMORY) as ram:
        session.attach(ram, gpa=0)
        exits = session.create_vcpu().exits()
        startup = next(exits)
        took = perf_counter_ns() - start
        assert startup.reason is Reason.STARTUP, startup
        exits.close()
    return took / 1e6


def measure_kvm(at: Workplace) -> list[Result]:
    """Beside a program that opens /dev/kvm itself and runs to its first port I/O."""
    with Helper([compile_helper("bare_kvm.c", at.directory)]) as bare:
        samples = in_turns(
            max(at.effort.rounds, ROUNDS_AT_LEAST),
            {
                "bare": lambda: int(bare.ask(f"open {MEMORY}")) / 1e6,
                "ours": lambda: open_to_first_exit(at.core, "kvm"),
            },
        )
    floor = "open_to_first_exit.bare"
    ours, bares = samples["ours"], samples["bare"]
    return [
        Result.of(floor, UNIT, bares),
        Result.compared("open_to_first_exit.kvm", UNIT, ours, floor, bares),
        Result.compared("open_to_first_exit", UNIT, ours, floor, bares),
    ]


def measure_soft(at: Workplace) -> list[Result]:
    """The best engine there is, where there is no KVM."""
    samples = in_turns(
        max(at.effort.rounds, ROUNDS_AT_LEAST),
        {"ours": lambda: open_to_first_exit(at.core, "soft")},
    )["ours"]
    names = ["open_to_first_exit.soft"]
    if "kvm" not in at.engines:
        names.append("open_to_first_exit")
    return [Result.of(name, UNIT, samples) for name in names]


KVM = Benchmark(
    ("open_to_first_exit.bare", "open_to_first_exit.kvm", "open_to_first_exit"),
    measure_kvm,
    engine="kvm",
)
SOFT = Benchmark(("open_to_first_exit.soft", "open_to_first_exit"), measure_soft, engine="soft")
