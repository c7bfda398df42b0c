"""Schedule, parameterization and variance, and the schedulers of diffusers.

Their timestep t = 0…T − 1 is our level t + 1; what lies before their first is our level 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import TypedDict

from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.levels import Schedule
from ddpm_lightning.diffusion.parameterizations import X0, Eps, Parameterization, V
from ddpm_lightning.diffusion.prediction import FixedLarge, FixedSmall, Variance
from ddpm_lightning.diffusion.schedules import (
    Cosine,
    Linear,
    Quadratic,
    SigmoidBetas,
    Table,
    ZeroTerminalSNR,
    tables_from_betas,
)
from ddpm_lightning.diffusion.variances import LearnedRange
from ddpm_lightning.errors import InputError
from ddpm_lightning.interchange.settings import understood

PREDICTIONS: dict[str, type[Parameterization]] = {"epsilon": Eps, "sample": X0, "v_prediction": V}
VARIANCES: dict[str, type[Variance]] = {
    "fixed_small": FixedSmall,
    "fixed_small_log": FixedSmall,  # the same, computed by way of its logarithm
    "fixed_large": FixedLarge,
    "learned_range": LearnedRange,
}
NAMED: dict[type[Schedule], str] = {Linear: "linear", Quadratic: "scaled_linear"}


class SchedulerConfig(TypedDict):
    """Every key of DDPMScheduler's and DDIMScheduler's configuration, of early versions, too."""

    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
    trained_betas: list[float] | None
    variance_type: str
    clip_sample: bool
    clip_sample_range: float
    prediction_type: str
    thresholding: bool
    dynamic_thresholding_ratio: float
    sample_max_value: float
    timestep_spacing: str
    steps_offset: int
    rescale_betas_zero_snr: bool
    set_alpha_to_one: bool
    timestep_values: None
    tensor_format: str


DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "variance_type": "fixed_small",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
    "set_alpha_to_one": True,
    "timestep_values": None,
    "tensor_format": "pt",
}
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")
MOST_LEVELS = 10**6


@dataclass(frozen=True, eq=False)
class Process:
    """What a scheduler's configuration says of the model: all but how to sample from it.

    Args:
        schedule: The levels.
        parameterization: What the network predicts.
        variance: Variance of the reverse steps.
        data_range: To which predictions of x0 are clipped; None: they are not.
    """

    schedule: Schedule
    parameterization: Parameterization
    variance: Variance
    data_range: tuple[float, float] | None


def scheduler_config(denoiser: Denoiser, data_range: tuple[float, float] | None) -> dict[str, Any]:
    """Write a DDPMScheduler's configuration.

    Raises InputError: diffusers has no such schedule, parameterization, variance or range.
    """
    schedule = denoiser.schedule
    if data_range is not None and data_range[0] != -data_range[1]:
        raise InputError(
            f"diffusers clips to a range around 0, and this data has the range {data_range}"
        )
    return {
        "num_train_timesteps": schedule.T,
        **_betas_config(schedule),
        "variance_type": _name_of(VARIANCES, denoiser.variance, "--variance FixedSmall has"),
        "clip_sample": data_range is not None,
        "clip_sample_range": 1.0 if data_range is None else data_range[1],
        "prediction_type": _name_of(
            PREDICTIONS, denoiser.parameterization, "Eps, X0 and V have; train with one of them"
        ),
        "thresholding": False,
        "timestep_spacing": "trailing",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
        "set_alpha_to_one": True,
    }


def _name_of(names: dict[str, Any], part: Any, others: str) -> str:
    for name, kind in names.items():
        if type(part) is kind:
            return name
    raise InputError(f"{type(part).__name__} has no counterpart in diffusers; {others}")


def _betas_config(schedule: Schedule) -> dict[str, Any]:
    """State a schedule by name where DDPM and DDIM know it there, else by its betas."""
    betas = betas_of(schedule)
    found = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
    found |= {"trained_betas": None}
    if type(schedule) in NAMED:
        ends = {"beta_start": float(betas[0]), "beta_end": float(betas[-1])}
        return found | {"beta_schedule": NAMED[type(schedule)]} | ends
    if type(schedule) is Cosine and not schedule.changed().keys() - {"T"}:
        return found | {"beta_schedule": "squaredcos_cap_v2"}
    return found | {"trained_betas": betas.tolist()}


def betas_of(schedule: Schedule) -> Tensor:
    """The betas of a schedule that preserves variance: float64 [T]; else InputError."""
    alpha, sigma = schedule.alpha, schedule.sigma
    if bool(((alpha**2 + sigma**2 - 1).abs() > 1e-9).any()):
        raise InputError(
            f"{type(schedule).__name__} does not preserve variance (alpha² + sigma² = 1), which "
            "the schedulers of DDPMPipeline and DDIMPipeline do"
        )
    return 1 - (alpha[1:] / alpha[:-1]) ** 2


def process_of(config: dict[str, Any], where: str) -> Process:
    """Read a DDPMScheduler's or DDIMScheduler's configuration.

    Raises InputError: A key is not understood, or has no counterpart here.
    """
    if config.get("_class_name") not in SCHEDULERS:
        raise InputError(
            f"{where} is of a {config.get('_class_name')}, and {' and '.join(SCHEDULERS)} are "
            "understood: save the pipeline with one of them"
        )
    only = {"prediction_type": tuple(PREDICTIONS), "variance_type": tuple(VARIANCES)}
    settings = understood(config, SchedulerConfig, DEFAULTS, only, where)
    try:
        schedule = _schedule(settings)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    reach = float(settings["clip_sample_range"])
    return Process(
        schedule,
        PREDICTIONS[settings["prediction_type"]](),
        VARIANCES[settings["variance_type"]](),
        (-reach, reach) if settings["clip_sample"] else None,
    )


def _schedule(settings: dict[str, Any]) -> Schedule:
    T, betas = settings["num_train_timesteps"], settings["trained_betas"]
    if not 1 <= T <= MOST_LEVELS:
        raise InputError(f"num_train_timesteps {T}: give 1 to {MOST_LEVELS}")
    schedule: Schedule
    if betas is not None:
        if len(betas) != T:
            raise InputError(f"trained_betas has {len(betas)} numbers, not {T}")
        alpha, sigma = tables_from_betas(torch.tensor(betas, dtype=torch.float64))
        schedule = Table(alpha.tolist(), sigma.tolist())
    elif settings["beta_schedule"] == "squaredcos_cap_v2":
        schedule = Cosine(T)
    else:
        kinds: dict[str, Any] = {
            "linear": Linear,
            "scaled_linear": Quadratic,
            "sigmoid": SigmoidBetas,
        }
        ends = (float(settings["beta_start"]), float(settings["beta_end"]))
        rescale = {} if T == 1000 else {"rescale": False}  # the default, where it changes nothing
        schedule = kinds[settings["beta_schedule"]](T, *ends, **rescale)
    return ZeroTerminalSNR(schedule) if settings["rescale_betas_zero_snr"] else schedule


def advice(config: dict[str, Any]) -> str | None:
    """Say how this scheduler samples otherwise than our samplers do by default; None: alike."""
    settings = {**DEFAULTS, **config}
    found = []
    if settings["timestep_spacing"] != "trailing":
        found.append(
            f"timestep_spacing {settings['timestep_spacing']}, which in few steps starts below T "
            "(here samplers are trailing)"
        )
    if settings["thresholding"]:
        ratio = settings["dynamic_thresholding_ratio"]
        found.append(f"thresholding: --sampler.threshold {ratio}")
    if not settings["clip_sample"]:
        found.append("no clipping (here samplers clip to the data's range)")
    return "; ".join(found) or None
