"""Numbers out of range are refused by name, where they are stated."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch

from ddpm_lightning.batch import DataSpec
from ddpm_lightning.callbacks import GenerativeMetrics, Likelihood, SampleGrid
from ddpm_lightning.commands.edits import Interpolate
from ddpm_lightning.data import Digits, Inpainting, SuperResolution, Toy2D
from ddpm_lightning.diffusion import (
    DiscretizedGaussian,
    EDMPreconditioning,
    Huber,
    Karras,
    LogitNormal,
    LogNormal,
    Sigmoid,
)
from ddpm_lightning.diffusion.samplers import KarrasSpacing, PowerSpacing
from ddpm_lightning.diffusion.weightings import EDM
from ddpm_lightning.errors import InputError
from ddpm_lightning.evaluation.sweep import Sweep
from ddpm_lightning.metrics import (
    KID,
    MMD,
    InceptionScore,
    LeNet,
    PrecisionRecall,
    SlicedWasserstein,
)
from ddpm_lightning.networks import MLP, DiT, SmallUNet, UNet
from ddpm_lightning.sampling import Request

IMAGES, POINTS = DataSpec((1, 8, 8)), DataSpec((2,), None)
Metrics = partial(GenerativeMetrics, LeNet())


@pytest.mark.parametrize(
    ("part", "argument", "value"),
    [
        (partial(DiT, IMAGES, 1), "heads", 0),
        (partial(DiT, IMAGES, 1), "patch", 0),
        (partial(MLP, POINTS, 2), "depth", 0),
        (partial(MLP, POINTS, 2), "dropout", 1.0),
        (partial(SmallUNet, IMAGES, 1), "channels", 0),
        (partial(UNet, IMAGES, 1), "blocks", -1),
        (partial(UNet, IMAGES, 1), "channels", 0),
        (partial(UNet, IMAGES, 1), "dropout", -0.1),
        (partial(UNet, IMAGES, 1), "groups", 0),
        (partial(UNet, IMAGES, 1), "heads", 0),
        (partial(UNet, IMAGES, 1), "multipliers", []),
        (Digits, "global_batch_size", 0),
        (Digits, "held_out", -1),
        (Digits, "image_size", 0),
        (Digits, "predict_n", 0),
        (DiscretizedGaussian, "bins", 1),
        (EDM, "sigma_data", 0.0),
        (EDMPreconditioning, "sigma_data", -0.5),
        (Huber, "delta", 0.0),
        (InceptionScore, "splits", 0),
        (Inpainting, "size", 0),
        (KID, "subset_size", 1),
        (KID, "subsets", 0),
        (Karras, "T", 1),
        (Karras, "rho", 0.0),
        (Karras, "sigma_max", 0.001),
        (Karras, "sigma_min", 0.0),
        (KarrasSpacing, "rho", -1.0),
        (Likelihood, "evaluations", -1),
        (Likelihood, "flow_n", -1),
        (Likelihood, "flow_probes", 0),
        (Likelihood, "flow_steps", 0),
        (LogNormal, "std", 0.0),
        (LogitNormal, "std", float("nan")),
        (LogitNormal, "uniform", 1.5),
        (MMD, "bandwidths", []),
        (Metrics, "neighbours", -1),
        (PowerSpacing, "power", 0.0),
        (PrecisionRecall, "k", 0),
        (Request, "batch_size", 0),
        (SampleGrid, "columns", 0),
        (Sigmoid, "T", 0),
        (Sigmoid, "tau", 0.0),
        (SlicedWasserstein, "projections", 0),
        (SuperResolution, "factor", 1),
        (Sweep, "evaluations", [0, 10]),
        (Toy2D, "n", 0),
        (Toy2D, "noise", -0.1),
        (partial(Interpolate, Path("a"), Path("b")), "iterations", 0),
    ],
)
def test_a_number_out_of_range_is_named(part, argument, value):
    with pytest.raises(InputError, match=rf"\b{re.escape(argument)}\b"):
        part(**{argument: value})


def test_a_guidance_scale_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="guidance scale nan"):
        Request(guidance=torch.nan)
