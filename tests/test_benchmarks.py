"""What all benchmarks share: paired ratios, and an exit code that tells a missed limit."""

from __future__ import annotations

import pytest

from benchmarks.report import Report
from benchmarks.timing import Spread, in_turn, ratio


def test_a_slow_round_of_the_machine_cancels_in_the_ratio():
    found = ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0])
    assert (found.low, found.median, found.high) == (2.0, 2.0, 2.0)


def test_the_order_turns_around_from_round_to_round():
    order = []
    ways = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = in_turn(ways, rounds=2, warm=0)
    assert order == ["a", "b", "b", "a"]
    assert len(seconds["a"].wall) == len(seconds["b"].cpu) == 2


@pytest.mark.parametrize(
    ("value", "limits", "code"),
    [
        (1.1, {"at_least": 1.0}, 0),
        (0.9, {"at_least": 1.0}, 1),
        (1.1, {"at_most": 1.0}, 1),
        (0.9, {"at_most": 1.0}, 0),
        (float("nan"), {"at_most": 1.0}, 1),
        (0.9, {}, 0),
    ],
)
def test_the_exit_code_tells_a_missed_limit(value, limits, code, capsys):
    report = Report("Speed")
    report.add("step", Spread.of([value]), **limits)
    assert report.finish() == code
    assert ("DOES NOT HOLD" in capsys.readouterr().out) == (code == 1)
