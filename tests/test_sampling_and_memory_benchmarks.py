"""benchmarks.sampling and benchmarks.memory on the smallest sizes: they measure what they name."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks.memory import NETWORKS, measured
from benchmarks.sampling import Nothing, Trials
from ddpm_lightning.batch import DataSpec
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.errors import InputError

pytestmark = pytest.mark.slow


def test_larger_features_take_more_memory():
    small, large = (measured("manifold", n)["bytes"] for n in (100, 3000))
    features = 2 * 2900 * 2048 * 4
    assert features < large - small < 10 * features


def test_the_networks_compared_are_of_like_size():
    ours, peers = (
        sum(p.numel() for p in NETWORKS[name]().parameters()) for name in ("UNet", "UNet2DModel")
    )
    assert abs(ours / peers - 1) < 0.02


def test_the_network_that_does_nothing_counts_its_calls():
    net = Nothing(DataSpec((1, 4, 4), (-1.0, 1.0)), 1)
    x = torch.ones(2, 1, 4, 4)
    assert net(x, torch.ones(2)) is x
    assert net.calls == 1


def test_levels_found_are_compared_with_fixed_ones_on_other_noise(lively_checkpoint, tmp_path):
    checkpoint = Path(shutil.copy(lively_checkpoint, tmp_path))
    settings = argparse.Namespace(n=200, seed=1, search_n=2, data_root=None)
    trials = Trials(checkpoint, tmp_path / "out", settings)
    found, fixed = trials.optimized(DDIM, 3), trials.fixed(DDIM, 3)
    assert [trial.evaluations for trial in (found, *fixed)] == [3] * 6
    assert len({trial.distance for trial in (found, *fixed)}) > 1
    assert "±" in found.against(fixed[0])
    assert found.against(found).startswith("DDIM, levels found (ode): 0 ± 0")


def test_levels_are_found_by_the_distance_from_the_data_too(lively_checkpoint, tmp_path):
    checkpoint = Path(shutil.copy(lively_checkpoint, tmp_path))
    settings = argparse.Namespace(n=200, seed=1, search_n=2, data_root=None)
    trials = Trials(checkpoint, tmp_path / "out", settings)
    by_ode, by_data = (trials.optimized(DDIM, 2, goal=goal) for goal in ("ode", "data"))
    assert by_ode.evaluations == by_data.evaluations == 2
    for name in ("ddim2_ema", "ddim2_ema_data"):
        assert json.loads(checkpoint.with_suffix(f".{name}.json").read_text())["seed"] == 2


def test_levels_that_were_found_with_the_noise_of_the_comparison_are_refused(
    lively_checkpoint, tmp_path
):
    checkpoint = Path(shutil.copy(lively_checkpoint, tmp_path))
    settings = argparse.Namespace(n=200, seed=1, search_n=2, data_root=None)
    checkpoint.with_suffix(".ddim2_ema.json").write_text('{"seed": 1}')
    with pytest.raises(InputError, match="not found with seed 2; move it away"):
        Trials(checkpoint, tmp_path / "out", settings).optimized(DDIM, 2)


def test_guidance_doubles_the_evaluations(lively_checkpoint, tmp_path):
    checkpoint = Path(shutil.copy(lively_checkpoint, tmp_path))
    settings = argparse.Namespace(n=200, seed=1, search_n=2, data_root=None)
    trials = Trials(checkpoint, tmp_path / "out", settings)
    plain, guided = trials.optimized(DDIM, 3), trials.optimized(DDIM, 3, 2.0)
    assert trials.guidable
    assert (plain.evaluations, guided.evaluations) == (3, 6)
    assert plain.distance != guided.distance
