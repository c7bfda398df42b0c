"""The rows of the ablation: named changes to `ablation_base.yaml`, as flags of fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddpm_lightning.diffusion import Guidance
from ddpm_lightning.diffusion.samplers import (
    DDIM,
    DPMSolverPP,
    DPMSolverPPSDE,
    Heun,
    KarrasSpacing,
    LogSNRSpacing,
    QuadraticSpacing,
    UniPC,
)
from ddpm_lightning.sampling import Request

BASE = "base"

Flags = Mapping[str, Any]
"""Flags of fit without their dashes, and values."""

UNET = "model.net."


def unet(**settings: Any) -> dict[str, Any]:
    """Settings of the base's network."""
    return {UNET + name: value for name, value in settings.items()}


def dit(patch: int, width: int, depth: int, heads: int) -> dict[str, Any]:
    """A diffusion transformer in the network's place."""
    return {"model.net": "DiT"} | unet(patch=patch, width=width, depth=depth, heads=heads)


NETWORKS: dict[str, Flags] = {
    "pixels, 32 × (1, 2, 2)": unet(
        patch=1, channels=32, multipliers=[1, 2, 2], attention_levels=[2]
    ),
    "channels 32": unet(channels=32),
    "channels 48": unet(channels=48),
    "channels 96": unet(channels=96),
    "channels 48, 2 blocks": unet(channels=48, blocks=2),
    "32 × (1, 4)": unet(channels=32, multipliers=[1, 4]),
    "patch 4, 128 × (1,), 2 blocks": unet(
        patch=4, channels=128, multipliers=[1], blocks=2, attention_levels=[0]
    ),
    "no attention": unet(attention_levels=[], mid_attention=False),
    "scale and shift": unet(scale_shift=True),
    "wavelet stem": unet(patch=1) | {"model.codec": "Haar"},
    "DiT, patch 4, 192 × 6": dit(4, 192, 6, 3),
    "DiT, patch 4, 128 × 6": dit(4, 128, 6, 4),
    "DiT, patch 2, 96 × 4": dit(2, 96, 4, 3),
    "self-conditioning": unet(self_conditioning=True),
}

RECIPES: dict[str, Flags] = {
    "unconditional": {"model.conditional": False},
    "batch 32": {"data.global_batch_size": 32},
    "batch 128": {"data.global_batch_size": 128},
    "batch 256": {"data.global_batch_size": 256, "model.optimizer.lr": 0.002},
    "lr 5e-4": {"model.optimizer.lr": 0.0005},
    "lr 2e-3": {"model.optimizer.lr": 0.002},
    "lr 4e-3": {"model.optimizer.lr": 0.004},
    "no decay of the rate": {"model.lr_schedule.power": 0.0},
    "Muon, lr 1e-3": {"model.optimizer": "MuonAdamW", "model.optimizer.lr": 0.001},
    "Muon, lr 2e-3": {"model.optimizer": "MuonAdamW", "model.optimizer.lr": 0.002},
    "Muon, lr 4e-3": {"model.optimizer": "MuonAdamW", "model.optimizer.lr": 0.004},
    "timesteps LogitNormal": {"model.timesteps": "LogitNormal", "model.timesteps.uniform": 0.1},
    "timesteps stratified": {"model.timesteps": "Stratified"},
    "loss Huber": {"model.objective": "Huber"},
    "weight MinSNR": {"model.objective.weighting": "MinSNR"},
    "weight of eps": {"model.objective.weighting": "EpsMSE"},
    "weight P2": {"model.objective.weighting": "P2"},
    "x0 with v-loss": {
        "model.parameterization": "X0",
        "model.objective.weighting": "EDM",
        "model.objective.weighting.sigma_data": 1.0,
    },
    "EDM preconditioning": {"model.parameterization": "EDMPreconditioning"},
    "flow matching": {"model.schedule": "Straight", "model.parameterization": "Velocity"},
    "optimal transport": {"model.pairing": "OptimalTransport"},
    "flow matching, optimal transport, unconditional": {
        "model.schedule": "Straight",
        "model.parameterization": "Velocity",
        "model.pairing": "OptimalTransport",
        "model.conditional": False,
    },
    "sigmoid schedule": {"model.schedule": "Sigmoid"},
    "channels-last": {
        "trainer.callbacks+": {
            "class_path": "FastKernels",
            "init_args": {"float32_matmul_precision": "highest"},  # it stays set in the process
        }
    },
    "bf16": {"trainer.precision": "bf16-mixed"},
}


def muon(lr: float, **network: Any) -> dict[str, Any]:
    """Muon for the matrices of a network with these settings."""
    return {"model.optimizer": "MuonAdamW", "model.optimizer.lr": lr} | unet(**network)


COMBINED: dict[str, Flags] = {
    "channels 32, Muon 2e-3": muon(0.002, channels=32),
    "channels 32, Muon 4e-3": muon(0.004, channels=32),
    "channels 48, Muon 2e-3": muon(0.002, channels=48),
    "channels 32, 2 blocks, Muon 2e-3": muon(0.002, channels=32, blocks=2),
    "32 × (1, 3), Muon 2e-3": muon(0.002, channels=32, multipliers=[1, 3]),
    "channels 32, Muon 2e-3, batch 32": muon(0.002, channels=32) | {"data.global_batch_size": 32},
}

QUICK = "channels 32, Muon 2e-3"
"""The row from which the quick presets were made."""

CHANGES: dict[str, Flags] = {
    "lr 1e-3": {"model.optimizer.lr": 0.001},
    "lr 8e-3": {"model.optimizer.lr": 0.008},
    "batch 128": {"data.global_batch_size": 128},
    "no decay of the rate": {"model.lr_schedule.power": 0.0},
    "no attention": unet(attention_levels=[], mid_attention=False),
    "scale and shift": unet(scale_shift=True),
    "wavelet stem": unet(patch=1) | {"model.codec": "Haar"},
    "self-conditioning": unet(self_conditioning=True),
    "unconditional": {"model.conditional": False},
    "timesteps stratified": {"model.timesteps": "Stratified"},
    "timesteps LogitNormal": RECIPES["timesteps LogitNormal"],
    "weight MinSNR": RECIPES["weight MinSNR"],
    "sigmoid schedule": RECIPES["sigmoid schedule"],
    "flow matching": RECIPES["flow matching"],
    "optimal transport": RECIPES["optimal transport"],
    "EDM preconditioning": RECIPES["EDM preconditioning"],
    "channels-last": RECIPES["channels-last"],
    "bf16": RECIPES["bf16"],
    "bf16, channels-last": {**RECIPES["bf16"], **RECIPES["channels-last"]},
}

FROM_QUICK: dict[str, Flags] = {
    f"quick, {name}": {**COMBINED[QUICK], **change} for name, change in CHANGES.items()
}
"""Changes to QUICK."""

ROWS: dict[str, Flags] = {BASE: {}} | RECIPES | NETWORKS | COMBINED | FROM_QUICK
"""Every row, the base first."""

PLAIN, GUIDED = "DPM++ 15", "DPM++ 15, guidance 1.25"
"""Cheap ways to sample, since each row is sampled in them."""

REQUESTS: dict[str, Request] = {
    PLAIN: Request(DPMSolverPP(15)),
    GUIDED: Request(DPMSolverPP(15), guidance=1.25),
    "DDIM 50": Request(DDIM(50)),
    "DDIM 50, eta 0.5": Request(DDIM(50, eta=0.5)),
    "DDIM 50, eta 1": Request(DDIM(50, eta=1.0)),
    "DDIM 50, quadratic": Request(DDIM(50, spacing=QuadraticSpacing())),
    "DPM++ 50": Request(DPMSolverPP(50)),
    "DPM++ 25": Request(DPMSolverPP(25)),
    "DPM++ 25, Karras": Request(DPMSolverPP(25, spacing=KarrasSpacing())),
    "DPM++ 25, log SNR": Request(DPMSolverPP(25, spacing=LogSNRSpacing())),
    "DPM++ SDE 50": Request(DPMSolverPPSDE(50)),
    "UniPC 25": Request(UniPC(25)),
    "Heun 25 (49 evaluations)": Request(Heun(25)),
    "DDIM 25, guidance 1.25": Request(DDIM(25), guidance=1.25),
    "DDIM 25, guidance 1.5": Request(DDIM(25), guidance=1.5),
    "DDIM 25, guidance 2": Request(DDIM(25), guidance=2.0),
    "DDIM 25, eta 1, guidance 1.25": Request(DDIM(25, eta=1.0), guidance=1.25),
    "DDIM 25, eta 1, guidance 1.5": Request(DDIM(25, eta=1.0), guidance=1.5),
    "DPM++ SDE 25, guidance 1.1": Request(DPMSolverPPSDE(25), guidance=1.1),
    "DPM++ SDE 25, guidance 1.25": Request(DPMSolverPPSDE(25), guidance=1.25),
    "DPM++ SDE 25, guidance 1.5": Request(DPMSolverPPSDE(25), guidance=1.5),
    "DPM++ SDE 25, log SNR, guidance 1.25": Request(
        DPMSolverPPSDE(25, spacing=LogSNRSpacing()), guidance=1.25
    ),
    "DDIM 28, guidance 1.5 above 0.3": Request(
        DDIM(28), guidance=Guidance(1.5, interval=(0.3, 1.0))
    ),
    "DDIM 30, guidance 1.5 in 0.2…0.8": Request(
        DDIM(30), guidance=Guidance(1.5, interval=(0.2, 0.8))
    ),
}
"""Ways to sample, at 50 evaluations a sample or fewer: all of them for QUICK, PLAIN and
GUIDED for every row."""

DECAYS = (0.99, 0.995, 0.998, 0.9995)
"""Decays of further averages of the weights, kept beside the base's own."""
