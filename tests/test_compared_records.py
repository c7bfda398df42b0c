"""compare: damaged records, differences without noise, and likelihoods of the same test images."""

from __future__ import annotations

import json
import math

import pytest

from ddpm_lightning.cli import main
from ddpm_lightning.diffusion.bound import variational_bound
from ddpm_lightning.evaluation.compare import compare_results, difference_error
from ddpm_lightning.loaded import Loaded
from ddpm_lightning.metrics import Score
from ddpm_lightning.metrics.result import read_results
from ddpm_lightning.randomness import IndexedNoise, Stream
from tests.small import fail
from tests.test_paired_comparison import written


@pytest.mark.parametrize(
    ("field", "damage"),
    [
        ("left_out", ["x"]),
        ("left_out", 7),
        ("left_out", [None, 1]),
        ("left_out", [math.inf, 1.0]),
        ("left_out", {"a": 1}),
        ("standard_error", "x"),
        ("value", [1.0]),
        ("samples", []),
        ("step", "1"),
    ],
)
def test_a_damaged_record_is_one_line(tmp_path, capsys, field, damage):
    left_out = [1.0, 2.0]
    paths = [written(tmp_path / name, Score(5.0, 1.0, left_out=left_out)) for name in "ab"]
    (record,) = json.loads(paths[1].read_text())
    paths[1].write_text(json.dumps([record | {field: damage}]))
    assert f"{paths[1]} is damaged" in fail(capsys, "compare", *map(str, paths))


def test_of_two_shares_without_scatter_the_noise_of_the_difference_is_not_known(tmp_path):
    a, b = (written(tmp_path / str(v), Score(v, 0.0, left_out=[v] * 3)) for v in (0.0, 1.0))
    last = compare_results(a, b).splitlines()[-1]
    assert last.split("  ")[-2:] == ["+1", "its noise is not known"]
    assert compare_results(a, b, layout="csv").splitlines()[-1].endswith(",1.0,")
    assert compare_results(a, a).splitlines()[-1].endswith("within the noise")


@pytest.fixture(scope="module")
def bounds(tiny_checkpoint, tmp_path_factory):
    """Folders with the bits a dimension of averaged and raw weights of the same run."""
    root = tmp_path_factory.mktemp("bounds")
    for weights in ("ema", "raw"):
        words = [f"--ckpt={tiny_checkpoint}", f"--weights={weights}", "--device=cpu"]
        main(["evaluate", *words, "--metrics=bpd", f"--out={root / weights}"])
    return root / "ema", root / "raw"


@pytest.mark.slow
def test_bits_of_the_same_images_and_noise_are_compared_by_paired_errors(bounds, tiny_checkpoint):
    loaded, totals = Loaded.read(tiny_checkpoint), []
    module, batch = loaded.module, loaded.data.finished("test")
    noise = IndexedNoise(1, batch.index, Stream.LIKELIHOOD)
    for weights in ("ema", "raw"):
        settings = {"clip": (-1.0, 1.0), "evaluations": 32}
        known = module.known(batch)
        bound = variational_bound(module.denoiser(weights), batch.x0, noise, known, **settings)
        totals.append(bound.total.double())
    difference = totals[1] - totals[0]
    a, b = (read_results(folder)["bpd"] for folder in bounds)
    assert b["value"] - a["value"] == pytest.approx(float(difference.mean()), rel=1e-3)
    error = float(difference.std()) / len(difference) ** 0.5
    assert difference_error(a, b) == pytest.approx(error, rel=0.5)  # from 20 blocks
    assert error < 0.5 * math.hypot(a["standard_error"], b["standard_error"])


@pytest.mark.slow
def test_compare_says_that_the_bits_share_their_noise(bounds):
    text = compare_results(*bounds)
    assert "share their noise (seed 1): errors of their difference are paired" in text
    assert "independent" not in text
    assert "paired standard errors" in text
