"""benchmarks.gpu on a CPU with a tiny network: every section measures, and a failure is a row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks import gpu
from benchmarks.loops import Recipe
from benchmarks.report import Report
from benchmarks.syncs import per_step

TINY = Recipe(channels=8, multipliers=(1, 2), blocks=1, groups=4, side=8, batch=4)
CPU = torch.device("cpu")


@pytest.fixture
def run():
    return gpu.Run(CPU, TINY, turns=2, n=1, warm=1, samples=4, steps=2)


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 0
    assert capsys.readouterr().out == "no GPU was found: nothing is measured\n"


def test_the_recipe_is_that_of_the_config():
    config = yaml.safe_load(Path("configs/cifar10.yaml").read_text())
    stated = config["model"]["net"]["init_args"] | {
        "batch": config["data"]["init_args"]["global_batch_size"]
    }
    recipe = Recipe()
    assert stated.pop("heads") == 1
    assert {name: getattr(recipe, name) for name in stated} == {
        name: tuple(value) if isinstance(value, list) else value for name, value in stated.items()
    }


def test_the_peer_has_as_many_parameters():
    ours, theirs = (
        sum(p.numel() for p in net.parameters()) for net in (TINY.module().net, TINY.unet2d())
    )
    assert ours == theirs


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "eager",
        "syncs",
        "noise",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("channels_last", "breaks")),
    ],
)
def test_a_section_measures_on_the_cpu(name, run):
    report = Report(name)
    gpu.sections(run, report, [name], seconds=100)
    assert report.rows
    assert [row for row in report.rows if row.failure] == []


@pytest.mark.parametrize(
    ("name", "peer", "layout"),
    [("compiled", False, False), ("both_compiled", True, True)],
)
def test_the_peer_is_compiled_and_channels_last_only_where_both_are(
    name, peer, layout, run, monkeypatch
):
    seen = {}

    def diffusers(recipe, device, dtype, channels_last=False, compile=False):
        seen.update(compile=compile, channels_last=channels_last)
        return lambda: None

    def fit(run, module, max_steps, callbacks, fast):
        for seconds in callbacks[0].seconds.values():
            seconds.wall.append(1.0)
            seconds.cpu.append(1.0)

    monkeypatch.setattr(gpu, "diffusers_step", diffusers)
    monkeypatch.setattr(type(TINY), "module", lambda self, compile: seen.update(ours=compile))
    monkeypatch.setattr(gpu.Run, "fit", fit)
    gpu.SECTIONS[name](run, Report(name))
    assert seen == {"compile": peer, "channels_last": layout, "ours": True}


def test_fit_and_the_others_take_turns(run):
    seen = []
    turns = gpu.Turns({"other": lambda: seen.append("other")}, n=2, warm=1)
    run.fit(TINY.module(), 7, [turns], fast=False)
    assert len(seen) == 1 + 3 * 2
    assert [len(taken.wall) for taken in turns.seconds.values()] == [3, 3]


def test_a_failure_and_the_end_of_the_time_are_rows(run, capsys):
    report = Report("faults")
    broken = replace(run, recipe=replace(TINY, channels=7))
    gpu.sections(broken, report, ["sampling"], seconds=100)
    gpu.sections(run, report, ["noise"], seconds=-1)
    assert report.finish() == 1
    printed = capsys.readouterr().out
    assert "| sampling | FAILED: InputError: UNet(channels=7" in printed
    assert "| noise | FAILED: not run" in printed


def test_a_profile_is_reduced_to_counts_a_step():
    trace = [
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaStreamSynchronize", "ts": 0, "dur": 1},
        {"ph": "X", "cat": "kernel", "name": "a", "ts": 0, "dur": 4},
        {"ph": "X", "cat": "kernel", "name": "b", "ts": 2, "dur": 4},
        {"ph": "X", "cat": "kernel", "name": "c", "ts": 9, "dur": 1},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy HtoD (Pageable -> Device)", "ts": 1,
         "dur": 1, "args": {"bytes": 4096}},
        {"ph": "M", "name": "process_name"},
    ]  # fmt: skip
    found = per_step(trace, steps=2)
    assert found["waits seen by the profiler"] == 0.5
    assert found["kernels"] == 1.5
    assert found["KiB HtoD"] == 2
    assert found["copies of pageable memory"] == 0.5
    assert found["share of time with a kernel"] == 0.7
