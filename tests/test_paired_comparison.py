"""Errors of differences between results whose samples share their noise, and of others."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_lightning.cli import main
from ddpm_lightning.evaluation.compare import compare_results, difference_error
from ddpm_lightning.metrics import (
    KID,
    Comparison,
    Features,
    FrechetDistance,
    PrecisionRecall,
    Result,
    Score,
)
from ddpm_lightning.metrics import ExtrapolatedFrechetDistance as Extrapolated
from ddpm_lightning.metrics.jackknife import jackknife
from ddpm_lightning.metrics.result import read_results, write_results

N, DRAWS = 240, 40


def record(score: Score, **samples) -> dict:
    samples = {"n": N, "sampler": "any", "seed": 1} | samples
    return Result("metric", score, samples, {"sha256": "a"}).record()


def scores(metric, noise: np.ndarray, real: Features, seed: int) -> tuple[Score, ...]:
    """Scores of two samplers, of which the second spreads wider and errs a little by itself."""
    own = np.random.default_rng(seed).normal(size=noise.shape)
    sets = (noise + 0.1, 1.05 * noise + 0.1 + 0.05 * own)
    found = (metric(Comparison(Features(torch.from_numpy(x).float()), real, seed=1)) for x in sets)
    return tuple(next(iter(one.values())) for one in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "shared"),
    [
        (FrechetDistance(), True),
        (FrechetDistance(), False),
        (Extrapolated(), True),
        (KID(subset_size=80, subsets=20), True),
        (PrecisionRecall(), True),
    ],
)
def test_the_error_of_a_difference_is_its_scatter_over_repeated_draws(metric, shared):
    generator = np.random.default_rng(0)
    real = Features(torch.from_numpy(generator.normal(size=(600, 4))).float())
    differences, errors, independent = [], [], []
    for draw in range(DRAWS):
        noise = generator.normal(size=(N, 4))
        a, b = scores(metric, noise, real, draw + 1000)
        if not shared:
            b = scores(metric, generator.normal(size=(N, 4)), real, draw + 1000)[1]
        differences.append(b.value - a.value)
        errors.append(difference_error(record(a), record(b, seed=1 if shared else 2)))
        independent.append(math.hypot(a.standard_error, b.standard_error))
    scatter = np.std(differences, ddof=1)
    stated, unpaired = (np.sqrt(np.mean(np.square(one))) for one in (errors, independent))
    # 40 draws know the scatter to 11 %, and a jackknife errs on the safe side.
    assert 0.75 < stated / scatter < 1.5
    if shared:
        assert stated < 0.5 * unpaired


A, B = [1.0, 2.0, 3.0, 4.0], [3.0, 2.0, 1.0, 4.0]  # whose correlation is 0.2


@pytest.mark.parametrize(
    ("left_out", "samples", "error"),
    [
        (A, {}, 1.0),  # 2 − 1
        (B, {}, 5 - 4 * 0.2),
        (B, {"seed": 2}, 5),
        (A[:3], {}, 5),
        ([1.0, 1.0, 1.0, 1.0], {}, 5),
        (None, {}, 5),
    ],
)
def test_a_paired_error_knows_the_correlation_of_what_blocks_leave_out(left_out, samples, error):
    a, b = (
        record(Score(1.0, 1.0, left_out=A)),
        record(Score(2.0, 2.0, left_out=left_out), **samples),
    )
    assert difference_error(a, b) ** 2 == pytest.approx(error)


def test_an_error_that_is_not_known_leaves_that_of_the_difference_unknown():
    assert difference_error(record(Score(1.0, None, left_out=A)), record(Score(2.0, 1.0))) is None


def written(folder: Path, *scores: Score, old: bool = False, **samples) -> Path:
    """A file of results with the metrics m0, m1, …; an old one knows of no blocks."""
    samples = {"n": N, "sampler": "any", "seed": 1} | samples
    results = [Result(f"m{k}", one, samples) for k, one in enumerate(scores)]
    path = folder / "results.json"
    folder.mkdir()
    records = write_results(path, results)
    if old:
        path.write_text(json.dumps([{k: r[k] for k in r if k != "left_out"} for r in records]))
    return path


def test_compare_says_of_which_metrics_the_errors_are_paired(tmp_path):
    both = Score(5.0, 1.0, left_out=A), Score(5.0, 1.0)
    other = Score(7.0, 2.0, left_out=A), Score(7.0, 2.0)
    text = compare_results(written(tmp_path / "a", *both), written(tmp_path / "b", *other))
    assert "share their noise (seed 1): errors of their difference are paired" in text
    assert "of m1 taken as independent" in text
    assert [line.split("  ")[-1] for line in text.splitlines()[-2:]] == [
        "within the noise (2.0 paired standard errors)",
        "within the noise (0.9 standard errors)",
    ]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"old": True}, "share their noise (seed 1); of m0 taken as independent, for want of"),
        ({"seed": 2}, "do not share their noise as far as known: errors taken as independent"),
        ({"seed": None}, "do not share their noise as far as known"),
    ],
)
def test_results_without_blocks_or_of_other_noise_are_compared_as_independent(
    tmp_path, other, words
):
    a = written(tmp_path / "a", Score(5.0, 1.0, left_out=A))
    b = written(tmp_path / "b", Score(7.0, 2.0, left_out=A), **other)
    text = compare_results(a, b)
    assert words in text
    assert "within the noise (0.9 standard errors)" in text
    assert "2.236" in compare_results(a, b, layout="csv")


@pytest.mark.slow
def test_two_samplers_of_a_checkpoint_are_compared_by_paired_errors(
    tiny_checkpoint, tmp_path, capsys
):
    flags = ["--n=60", "--sampler=DDIM", "--metrics=fd", "--device=cpu"]
    for steps in (4, 5):
        out = [f"--out={tmp_path / str(steps)}", f"--sampler.steps={steps}"]
        main(["evaluate", f"--ckpt={tiny_checkpoint}", *flags, *out])
    a, b = (read_results(tmp_path / name)["fd_lenet"] for name in ("4", "5"))
    assert len(a["left_out"]) == 20
    assert jackknife(a["left_out"]) == pytest.approx(a["standard_error"])
    assert difference_error(a, b) < 0.5 * math.hypot(a["standard_error"], b["standard_error"])
    capsys.readouterr()
    main(["compare", str(tmp_path / "4"), str(tmp_path / "5")])
    assert "paired standard errors)" in capsys.readouterr().out
