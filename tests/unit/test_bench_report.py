"""The report of the benchmarks: what later runs compare with, and what people read."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from tests.benchmarks.report import COLUMNS, number, print_table, write_json
from tests.benchmarks.result import Result
from tests.benchmarks.rounds import in_turns
from tests.benchmarks.target import TARGETS, Target

FLOOR = Result("kvm.port_exit.bare", 5200.0, "ns")
OURS = Result("kvm.port_exit.python_vmm", 6500.123456, "ns", FLOOR.name, 1.25)


class Terminal(io.StringIO):
    """What a terminal is sent."""

    def isatty(self) -> bool:
        return True


def test_json_is_a_list_of_exactly_these_members(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    write_json([FLOOR, OURS], path)
    assert json.loads(path.read_text()) == [
        {
            "name": "kvm.port_exit.bare",
            "value": 5200.0,
            "unit": "ns",
            "against": None,
            "ratio": None,
        },
        {
            "name": "kvm.port_exit.python_vmm",
            "value": 6500.1235,
            "unit": "ns",
            "against": "kvm.port_exit.bare",
            "ratio": 1.25,
        },
    ]


def test_a_pipe_gets_tabs_and_the_header() -> None:
    out = io.StringIO()
    print_table([FLOOR, OURS], out)
    lines = [line.split("\t") for line in out.getvalue().splitlines()]
    assert lines == [
        list(COLUMNS),
        ["kvm.port_exit.bare", "5200", "ns", "", "", "", ""],
        [
            "kvm.port_exit.python_vmm",
            "6500",
            "ns",
            "1.25x",
            "kvm.port_exit.bare",
            "<= 1.25x where a core is spare",
            "met",
        ],
    ]


def test_a_terminal_gets_aligned_columns() -> None:
    out = Terminal()
    print_table([FLOOR, Result("x", 1.0, "us", FLOOR.name, 0.5)], out)
    assert "\t" not in out.getvalue()
    values = [
        line.index(" ns" if "ns" in line else " us") for line in out.getvalue().splitlines()[1:]
    ]
    assert len(set(values)) == 1


def test_the_ratio_is_the_median_of_the_rounds_own() -> None:
    """The second half of the run was twice as slow: the ratio does not see it."""
    result = Result.compared("b", "ns", [20, 20, 40, 40, 40], "a", [10, 10, 20, 20, 20])
    assert result == Result("b", 40, "ns", "a", 2.0)
    with pytest.raises(ValueError, match="zip"):
        Result.compared("b", "ns", [1, 2], "a", [1])


def test_the_best_compares_the_quietest_round_of_each_side() -> None:
    result = Result.best("b", "ns", [30, 12, 90], "a", [10, 20, 15])
    assert result == Result("b.best", 12, "ns", "a", 1.2)


def test_measures_alternate_after_one_warm_up() -> None:
    calls: list[str] = []

    def measure(name: str) -> float:
        calls.append(name)
        return len(calls)

    samples = in_turns(2, {"a": lambda: measure("a"), "b": lambda: measure("b")})
    assert "".join(calls) == "ababab"
    assert samples == {"a": [3, 5], "b": [4, 6]}


@pytest.mark.parametrize(
    ("target", "result", "met"),
    [
        (Target(3), Result("x", 3.0, "us"), True),
        (Target(3), Result("x", 3.1, "us"), False),
        (Target(1.25, of_ratio=True), Result("x", 9.0, "ns", "y", 1.25), True),
        (Target(1.25, of_ratio=True), Result("x", 1.0, "ns", "y", 1.26), False),
        (Target(1.25, of_ratio=True), Result("x", 1.0, "ns"), False),
        (Target(0.5, of_ratio=True, at_least=True), Result("x", 9.0, "/s", "y", 0.5), True),
        (Target(0.5, of_ratio=True, at_least=True), Result("x", 9.0, "/s", "y", 0.4), False),
    ],
)
def test_a_target_bounds_value_or_ratio(target: Target, result: Result, met: bool) -> None:
    assert target.met(result) is met


def test_targets_say_what_they_bound() -> None:
    assert Target(20).text("ms") == "<= 20 ms"
    assert Target(0.5, of_ratio=True, at_least=True).text("exits/s") == ">= 0.5x"


def test_every_target_is_of_a_result_that_is_measured() -> None:
    from tests.benchmarks.campaign import BENCHMARKS  # noqa: PLC0415 - loads gRPC

    names = [name for benchmark in BENCHMARKS for name in benchmark.names]
    assert set(TARGETS) <= set(names)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1234, "0.12"), (9.876, "9.88"), (12.34, "12.3"), (126000.4, "126000")],
)
def test_numbers_have_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert number(value) == text
