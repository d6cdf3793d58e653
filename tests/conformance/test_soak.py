"""Long campaigns, run by `make soak`: an hour by default.

VMSESSION_SOAK_SECONDS is the time of the model's steps on each engine and transport, a third of it that
of the scenario sessions, a fifth that of two engines in lockstep in each mode; VMSESSION_SOAK_PAIRS the
number of run/pause pairs; VMSESSION_SEED the seed."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from dataspace.registers import Segment
from dataspace.vcpu_page import Reason
from tests.conformance.claims import needs
from tests.conformance.diff.campaign import campaign
from tests.conformance.diff.sides import lockstep
from tests.conformance.stress.driver import Driver
from tests.conformance.stress.seed import seed
from tests.conformance.stress.soak_report import Row, SoakReport
from tests.conformance.test_vmm_x86 import PAGE, scenario
from vmm_client import Connection
from vmm_client.diff import DiffMode
from vmm_client.diff.report import lines

pytestmark = pytest.mark.soak

PAIRS = int(os.environ.get("VMSESSION_SOAK_PAIRS", "1000000"))
SECONDS = float(os.environ.get("VMSESSION_SOAK_SECONDS", "500"))
SCENARIO_SECONDS = SECONDS / 3
LOCKSTEP_SECONDS = SECONDS / 5
STREAMS, GROUPS = 20, 80  # assembled at once; instructions or so in each
SESSIONS = 8
ROUNDS = 200
PATIENCE = 20.0
SPIN = bytes.fromhex("ebfe")


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest) -> Iterator[SoakReport]:
    """Speaks on the terminal, whatever pytest captures."""
    plugins = request.config.pluginmanager
    reporter, capture = plugins.getplugin("terminalreporter"), plugins.getplugin("capturemanager")
    assert reporter is not None
    assert capture is not None

    def write(line: str) -> None:
        with capture.global_and_fixture_disabled():
            reporter.write_line(line)

    soak = SoakReport(write)
    yield soak
    soak.finish()


def test_run_and_pause_a_million_times(client: Connection, engine: str, report: SoakReport) -> None:
    """A guest that never exits, run and paused by page: each pair is one PAUSED, acknowledged."""
    begin = time.monotonic()
    with client.create_session(engine) as session, client.create_ram(PAGE) as ram:
        ram.write(0, SPIN)
        session.attach(ram, 0)
        vcpu = session.create_vcpu()
        vcpu.run()
        assert vcpu.wait(PATIENCE) is not None
        vcpu.registers.update({"cs": Segment(0, 0x9B, 0xFFFF, 0), "rip": 0})
        first = vcpu.exit.sequence
        for pair in range(1, PAIRS + 1):
            vcpu.run()
            number = vcpu.pause()
            exit_ = vcpu.wait(PATIENCE)
            assert exit_ is not None, f"pair {pair}: no exit"
            assert exit_.reason is Reason.PAUSED, f"pair {pair}: {exit_}"
            assert vcpu.pauses_acknowledged == number == pair
            report.progress(f"run and pause, {engine}", pair, PAIRS, "pairs")
        assert vcpu.exit.sequence == first + PAIRS
    seconds = time.monotonic() - begin
    report.add(Row("run and pause", engine, "page", PAIRS, "pairs", seconds, None, {}))


def test_the_model_holds_for_long(
    client: Connection, engine: str, transport: str, report: SoakReport
) -> None:
    """The random steps of `test_model.py`, with another seed each time."""
    chosen = seed()
    begin = time.monotonic()
    with Driver(client, engine, chosen, stream=transport == "stream") as driver:
        while (spent := time.monotonic() - begin) < SECONDS:
            driver.episode(ROUNDS)
            report.progress(f"model, {engine} {transport}", int(spent), int(SECONDS), "seconds")
        figures = dict(driver.figures)
    row = Row("model", engine, transport, figures["rounds"], "runs", spent, chosen, figures)
    report.add(row)


@needs("feature:smp")
def test_eight_scenario_sessions_at_once(
    client: Connection, engine: str, report: SoakReport
) -> None:
    """Genode's acceptance scenario, four vCPUs each, in eight sessions beside each other."""
    begin = time.monotonic()

    def play(_: int) -> None:
        with client.create_session(engine) as session, client.create_ram(PAGE) as page:
            scenario(session, page, stream=False)

    played = 0
    with ThreadPoolExecutor(SESSIONS) as threads:
        while (spent := time.monotonic() - begin) < SCENARIO_SECONDS:
            played += len(list(threads.map(play, range(SESSIONS))))
            done, of = int(spent), int(SCENARIO_SECONDS)
            report.progress(f"scenarios, {engine}", done, of, "seconds")
    report.add(Row("scenario", engine, "page", played, "sessions", spent, None, {}))


@pytest.mark.parametrize("mode", DiffMode)
def test_two_engines_agree_for_long(client: Connection, mode: DiffMode, report: SoakReport) -> None:
    """The streams of `test_diff.py`, with others each time. All that differs is told at the end."""
    chosen = first = seed()
    begin = time.monotonic()
    figures: Counter[str] = Counter()
    differ = []
    with lockstep(client, "soft", "kvm") as both:
        while (spent := time.monotonic() - begin) < LOCKSTEP_SECONDS:
            for case in campaign(both, mode, range(first, first + STREAMS), GROUPS):
                figures["instructions"] += case.outcome.compared
                figures["streams"] += 1
                if case.outcome.differences:
                    differ.append(
                        f"seed {case.seed}\n" + "\n".join(lines(case.outcome, "instruction"))
                    )
            first += STREAMS
            done, of = int(spent), int(LOCKSTEP_SECONDS)
            report.progress(f"lockstep, {mode.value}", done, of, "seconds")
    number, told = figures["instructions"], dict(figures) | {"differ": len(differ)}
    campaign_name = f"lockstep {mode.value}"
    report.add(Row(campaign_name, "soft/kvm", "page", number, "instructions", spent, chosen, told))
    assert not differ, "\n\n".join(differ[:10])
