"""Diffusion: the parts that a config file names, by the path that checkpoints store."""

# ruff: noqa: F401 (exports)

from ddpm_lightning.diffusion.decoders import Decoder, DiscretizedGaussian, GaussianDecoder
from ddpm_lightning.diffusion.denoiser import Denoiser, Denoises
from ddpm_lightning.diffusion.guidance import Guidance, guide
from ddpm_lightning.diffusion.label_dropout import LabelDropout
from ddpm_lightning.diffusion.levels import Level, Schedule
from ddpm_lightning.diffusion.losses import (
    L1,
    MSE,
    Huber,
    Hybrid,
    NoisedBatch,
    Objective,
    Regression,
    VariationalBound,
)
from ddpm_lightning.diffusion.pairing import Independent, OptimalTransport, Pairing
from ddpm_lightning.diffusion.parameterizations import (
    X0,
    EDMPreconditioning,
    Eps,
    MeanShift,
    Parameterization,
    PosteriorMean,
    Score,
    V,
    Velocity,
)
from ddpm_lightning.diffusion.prediction import FixedLarge, FixedSmall, Prediction, Variance
from ddpm_lightning.diffusion.schedules import (
    VE,
    VP,
    BetaSchedule,
    Cosine,
    Karras,
    Linear,
    Quadratic,
    Sigmoid,
    SigmoidBetas,
    SohlDickstein,
    Straight,
    Table,
    ZeroTerminalSNR,
)
from ddpm_lightning.diffusion.timesteps import (
    LogitNormal,
    LogNormal,
    LossSecondMoment,
    RealTimes,
    Stratified,
    Timesteps,
    Uniform,
)
from ddpm_lightning.diffusion.variances import (
    AnalyticVariance,
    LearnedDiagonal,
    LearnedLogVariance,
    LearnedRange,
)
from ddpm_lightning.diffusion.weightings import (
    EDM,
    P2,
    VLB,
    EpsMSE,
    MinSNR,
    Plain,
    ScoreMSE,
    Weighting,
)
