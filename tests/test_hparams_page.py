"""TensorBoard's HPARAMS page offers the metrics that a run measures, and no others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ddpm_lightning.callbacks.hyper_parameters import measured
from ddpm_lightning.metrics import Inception, LeNet
from ddpm_lightning.metrics.measures import Measures
from ddpm_lightning.metrics.metric import as_metrics


@pytest.mark.parametrize(
    ("metrics", "extractor", "offered"),
    [
        ("fd", LeNet, ["fd"]),
        ("fd", Inception, ["fid"]),
        ("kid,fd_inf,pr", LeNet, []),
        ("kid", Inception, []),
        ("swd,mmd", None, ["swd"]),
        ("mmd", None, []),
    ],
)
def test_only_what_is_measured_is_offered(metrics, extractor, offered):
    measures = Measures(as_metrics(metrics), extractor() if extractor else None)
    trainer = SimpleNamespace(callbacks=[SimpleNamespace(measures=measures), object()])
    assert measured(trainer) == ["val/loss_ema", *offered]
