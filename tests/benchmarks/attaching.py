"""Attaching and detaching one page where few and where many are attached: it costs what is touched, not
what is there."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from time import perf_counter_ns
from typing import Final

from vmsession.v1.vm_session_pb2 import UpgradeQuotaRequest

from tests.benchmarks.helper import Helper, compile_helper
from tests.benchmarks.result import Result
from tests.benchmarks.rounds import in_turns
from tests.benchmarks.workplace import Benchmark, Workplace
from vmm_client import Connection, Ram, Session

COUNTS: Final = (10, 1000, 20_000)
PAGE: Final = 4096
STRIDE: Final = 2 * PAGE  # neighbours that do not touch
AT: Final = 1 << 32
PAIRS: Final = 20
UNIT: Final = "us"


class Crowd:
    """A session with `count` attachments of one page, and time taken in the midst of them."""

    def __init__(self, core: Connection, session: Session, ram: Ram, count: int) -> None:
        request = UpgradeQuotaRequest(session=session.name, capabilities=count)
        core.rpc.call(core.vm_sessions.UpgradeQuota, request)
        for number in range(count):
            session.attach(ram, AT + number * STRIDE)
        self._session = session
        self._ram = ram
        self._gpa = AT + count // 2 * STRIDE
        self.detaching: list[float] = []

    def attach(self) -> float:
        """One, in us; detaching it before is timed as well."""
        detaching = attaching = 0
        for _ in range(PAIRS):
            start = perf_counter_ns()
            self._session.detach(self._gpa, PAGE)
            between = perf_counter_ns()
            self._session.attach(self._ram, self._gpa)
            detaching += between - start
            attaching += perf_counter_ns() - between
        self.detaching.append(detaching / PAIRS / 1000)
        return attaching / PAIRS / 1000


def measure(engine: str, at: Workplace) -> list[Result]:
    """Each number beside the smallest."""
    with ExitStack() as stack:
        ram = stack.enter_context(at.core.create_ram(PAGE))
        crowds = {
            count: Crowd(at.core, stack.enter_context(at.core.create_session(engine)), ram, count)
            for count in COUNTS
        }
        attaching = in_turns(
            at.effort.rounds, {str(count): crowd.attach for count, crowd in crowds.items()}
        )
    detaching = {str(count): crowd.detaching[1:] for count, crowd in crowds.items()}
    return [
        *_compared(f"{engine}.attach", attaching),
        *_compared(f"{engine}.detach", detaching),
    ]


def measure_bare(at: Workplace) -> list[Result]:
    """The kernel's part: mmap of a memfd and a memory slot, and both away."""
    with Helper([compile_helper("bare_kvm.c", at.directory)]) as bare:
        samples = in_turns(
            at.effort.rounds // 3,
            {str(count): partial(_ask, bare, count) for count in COUNTS},
        )
    return _compared("bare.attach_and_detach", samples)


def _ask(bare: Helper, count: int) -> float:
    return int(bare.ask(f"map {count}")) / 1000


def _compared(name: str, samples: dict[str, list[float]]) -> list[Result]:
    few, *more = samples
    against = f"{name}.{few}"
    return [
        Result.of(against, UNIT, samples[few]),
        *(
            Result.compared(f"{name}.{each}", UNIT, samples[each], against, samples[few])
            for each in more
        ),
    ]


def _names(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.{count}" for name in names for count in COUNTS)


def _benchmark(engine: str) -> Benchmark:
    names = _names(f"{engine}.attach", f"{engine}.detach")
    return Benchmark(names, partial(measure, engine), engine)


BARE = Benchmark(_names("bare.attach_and_detach"), measure_bare, engine="kvm")
KVM = _benchmark("kvm")
SOFT = _benchmark("soft")
