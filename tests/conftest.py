"""Which engines the tests ran on: an engine that works on this machine must not be passed over. And the
engines compiled with sanitizers, once for all tests."""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
from collections import Counter

import pytest

from tests import libx86emu
from tests.sanitizers import Sanitized

ENGINES = ("kvm", "soft", "x86emu")
ran: Counter[str] = Counter()


def expected() -> list[str]:
    """The engines that must work here."""
    wheel = sys.version_info[:2] == (3, 11) and platform.machine() == "x86_64"
    kvm = os.access("/dev/kvm", os.R_OK | os.W_OK)
    return ["kvm"] * kvm + ["soft"] * wheel + ["x86emu"] * libx86emu.present()


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Sanitized:
    """The engines with sanitizers."""
    return Sanitized(tmp_path_factory.mktemp("sanitized"))


def pytest_configure() -> None:
    """A run that is terminated tears down like one that is interrupted, and leaves no core behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_report_header() -> str:
    """Said first."""
    return f"engines expected to work here: {', '.join(expected()) or 'none'}"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count by the engine that stands in the test's parameters."""
    if report.when == "call" and report.passed:
        _, _, parameters = report.nodeid.partition("[")
        ran.update(name for name in ENGINES if name in parameters.rstrip("]").split("-"))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Said last."""
    told = ", ".join(f"{name} ({ran[name]} tests)" for name in ENGINES if ran[name])
    terminalreporter.write_line(f"engines that ran: {told or 'none'}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A whole run fails if an engine that should have run did not."""
    whole = not session.config.option.keyword and not session.config.option.file_or_dir
    missing = [name for name in expected() if not ran[name]]
    if whole and missing and exitstatus == 0:
        print(f"\nno test ran on: {', '.join(missing)}", file=sys.stderr)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Python would wait for them for ever: a test that failed in the midst of a core in this process."""
    left = [each.name for each in threading.enumerate() if not each.daemon]
    left.remove(threading.main_thread().name)
    if left:
        print(f"\nthreads that were left running: {', '.join(left)}", file=sys.stderr, flush=True)
        os._exit(pytest.ExitCode.TESTS_FAILED)
