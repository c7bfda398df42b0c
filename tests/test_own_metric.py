"""A metric of the user's own that returns something other than scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddpm_lightning.callbacks import GenerativeMetrics
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics import Features, LeNet, Measures, Metric, Score
from tests.small import fit


class Returned(Metric):
    """Returns what it was given."""

    def __init__(self, what: object = 1.0) -> None:
        self.what = what

    def __call__(self, sets):
        return self.what


POINTS = Features(torch.zeros(8, 2))


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        (1.0, "float"),
        (None, "NoneType"),
        (torch.ones(2, 2), "Tensor"),
        (Score(1.0), "Score"),
        ({"returned": 1.0}, "float"),
        ({"returned": Score(torch.tensor(1.0))}, "Tensor"),
        ({}, "nothing"),
    ],
)
def test_what_is_no_score_is_one_line_with_the_class_and_what_to_return(what, kind):
    with pytest.raises(InputError) as caught:
        Measures([Returned(what)])(POINTS, POINTS)
    message = str(caught.value)
    assert f"tests.test_own_metric.Returned returned {kind}; " in message
    assert "__call__ returns {self.name: Score(float(value))}" in message
    assert "\n" not in message


@pytest.mark.parametrize("value", [2, 2.0, np.float64(2)])
def test_numbers_of_python_and_float64_of_numpy_are_scores(value):
    assert Measures([Returned({"x": Score(value)})])(POINTS, POINTS)["x"].value == 2


def test_it_is_told_before_training_and_not_at_the_first_measurement(tmp_path):
    metric = GenerativeMetrics(LeNet(), 1, 8, [Returned()], sampler=DDIM(1))
    with pytest.raises(InputError, match="Returned returned float"):
        fit(tmp_path, 1, metric)
    assert not (tmp_path / "checkpoints").exists()
