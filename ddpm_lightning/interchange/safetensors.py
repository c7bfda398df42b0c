"""A checkpoint's model as one safetensors file, described in its metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ddpm_lightning.checkpoint import AVERAGE, DIGESTS, FORMAT, KEY, NET
from ddpm_lightning.errors import InputError
from ddpm_lightning.files import atomic_write
from ddpm_lightning.integrity import digests_of
from ddpm_lightning.sampling import Weights

KEPT = ("class_path", "data", "precision", "accumulate")
"""Entries of this library's that describe the model and its training."""


def write_safetensors(
    checkpoint: dict[str, Any], path: Path, weights: Weights | None, half: bool = False
) -> None:
    """Write the weights of a checkpoint, and in the metadata everything that describes them.

    Args:
        checkpoint: The content, from read_checkpoint.
        path: The file to write.
        weights: ema or raw: these alone, which read as both; None: both.
        half: Round the weights to float16; they become float32 again where they are loaded.

    Raises:
        InputError: The state holds more than tensors, or numbers too large for float16.
    """
    state = _chosen(checkpoint["state_dict"], weights)
    if half:
        state = {name: _rounded(name, value) for name, value in state.items()}
    own = {k: v for k, v in checkpoint[KEY].items() if k in KEPT}
    described = {
        "global_step": checkpoint["global_step"],
        "epoch": checkpoint["epoch"],
        "hyper_parameters": checkpoint["hyper_parameters"],
        KEY: {"format": FORMAT, **own},
    }
    described = json.loads(json.dumps(described))  # as it will be read
    described[KEY][DIGESTS] = digests_of({**described, "state_dict": dict(sorted(state.items()))})
    stored = dict(state)
    if _is_its_average(state):
        stored = {k: value for k, value in state.items() if not k.startswith(AVERAGE)}
    # A copy of each, because tensors of one storage are refused.
    tensors = {name: value.detach().cpu().clone() for name, value in stored.items()}
    with atomic_write(path) as partial:
        # Not save_file, because its files are nobody else's to read.
        partial.write_bytes(save(tensors, metadata={"format": "pt", KEY: json.dumps(described)}))


def _chosen(state: dict[str, Any], weights: Weights | None) -> dict[str, Tensor]:
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"safetensors holds tensors, and {name} is a {type(value).__name__}; share the "
                ".ckpt itself"
            )
    if weights is None:
        return state
    source, other = (AVERAGE, NET) if weights == "ema" else (NET, AVERAGE)
    names = [name.removeprefix(source) for name in state if name.startswith(source)]
    return state | {f"{other}{name}": state[f"{source}{name}"] for name in names}


def _rounded(name: str, value: Tensor) -> Tensor:
    if not (value.is_floating_point() and name.startswith((NET, AVERAGE))):
        return value
    rounded = value.half()
    if not torch.equal(rounded.isfinite(), value.isfinite()):
        raise InputError(f"{name} holds numbers too large for float16; take --format safetensors")
    return rounded


def _is_its_average(state: dict[str, Tensor]) -> bool:
    """Whether the averaged weights are the raw ones, bit by bit."""
    names = [name.removeprefix(NET) for name in state if name.startswith(NET)]
    averages = [name for name in state if name.startswith(AVERAGE)]
    return sorted(averages) == sorted(f"{AVERAGE}{name}" for name in names) and all(
        state[f"{AVERAGE}{name}"].dtype == state[f"{NET}{name}"].dtype
        and torch.equal(state[f"{AVERAGE}{name}"], state[f"{NET}{name}"])
        for name in names
    )
