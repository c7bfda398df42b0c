"""The benchmarks of start-up, step and overhead on tiny cases: what is compared with what."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import overhead, startup, train_step
from benchmarks.data import Noise
from benchmarks.loops import SMALL, Recipe
from benchmarks.report import Report
from benchmarks.timing import Seconds, in_turn

TINY = Recipe(
    channels=8, multipliers=(1, 2), blocks=1, groups=4, dropout=0.0, side=8, batch=4, colours=1
)


def parameters(net) -> int:
    return sum(one.numel() for one in net.parameters())


def test_the_small_peer_has_as_many_parameters():
    assert parameters(SMALL.module().net) == parameters(SMALL.unet2d())


def test_the_convolutions_alone_are_those_of_a_step():
    """All of their work in both passes, and none of attention and linear layers."""
    net, x = TINY.module().net, TINY.images(torch.device("cpu"))
    run = train_step.convolutions(net, x)
    with FlopCounterMode(display=False) as alone:
        run()
    with FlopCounterMode(display=False) as step:
        net(x, torch.zeros(len(x))).sum().backward()
    convolved = {
        operation: flops
        for operation, flops in step.get_flop_counts()["Global"].items()
        if "convolution" in str(operation)
    }
    assert dict(alone.get_flop_counts()["Global"]) == convolved


def test_a_matrix_product_has_two_operations_a_multiplication():
    assert train_step.operations(train_step.matrix_products) == 5 * 2 * 1024**3


@pytest.mark.parametrize(
    ("precision", "limits"),
    [("32-true", {"MNIST: fit / diffusers": 1.2}), ("bf16-mixed", {})],
)
def test_a_step_is_timed_beside_both_layouts_of_the_peer(precision, limits, capsys):
    report = Report("tiny")
    data = Noise(1, TINY.side, TINY.batch, n=16)
    train_step.measure(report, "MNIST", TINY, data, 1, fast=True, precision=precision)
    assert {row.name: row.at_least for row in report.rows if row.at_least} == limits
    assert sum("diffusers, channels-last" in row.name for row in report.rows) == 2


def test_overhead_has_a_limit_for_each_of_three_shares(capsys):
    overhead.main(["--turns", "1", "--steps", "1"], TINY)
    table = capsys.readouterr().out
    assert [limit in table for limit in ("≥ 0.97", "≤ 0.02", "≤ 0.03")] == [True] * 3


def test_start_up_holds_every_command_to_what_it_imports(capsys):
    seconds = {name: Seconds([2.0], [2.0]) for name in ("torch", "all", "build", "fit", "sample")}
    helps = {" ".join(words[2:]): Seconds([1.0], [1.0]) for words in startup.plain_helps()}
    trained = {f"{name} --help": Seconds([3.0], [3.0]) for name in startup.TRAINING}
    report = startup.report(seconds | helps | trained)
    missed = {row.name.partition(" / ")[0] for row in report.rows if not row.holds}
    assert missed == trained.keys()
    assert {"sample --help", "--help", "plot --help"} <= helps.keys()


def test_a_process_that_fails_ends_the_measurement():
    with pytest.raises(RuntimeError, match="no such word"):
        startup.start("-c", "raise SystemExit('no such word')")


def test_processor_time_of_processes_that_were_started_is_counted():
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    seconds = in_turn({"burn": lambda: startup.start("-c", burn)}, rounds=1, warm=0)
    assert seconds["burn"].cpu[0] > 0.2
