"""Metrics that cannot be measured are refused before a run has files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.small import fail


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metrics.extractor=ColourNet"], "ColourNet reads images"),
        pytest.param(
            ["--metrics.extractor=Inception", "--metrics.extractor.weights=none.pth"],
            "none.pth",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--metrics.n=9", "--metrics.metrics=is"],
            "is needs 10 or more samples, not 9",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--metrics.extractor=Pixels", "--metrics.metrics=is"],
            "Pixels gives no logits",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_refused_metric_leaves_no_file_of_a_run(capsys, tmp_path, flags, message):
    where = [f"--trainer.default_root_dir={tmp_path}", "--trainer.accelerator=cpu"]
    assert message in fail(capsys, "fit", "--config=digits", *where, *flags)
    names = {path.name for path in Path(tmp_path).rglob("*")}
    assert not names & {"config.yaml", "hparams.yaml", "metrics.json", "checkpoints"}
