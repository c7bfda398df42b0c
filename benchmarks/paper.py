"""The CIFAR-10 recipe on H100s, by calculation: operations, memory, hours. Nothing is measured.

    python -m benchmarks.paper [--utilisation 0.3]

Operations of a training step are counted by torch.utils.flop_counter, forwards and backwards
(multiplications and additions one each; only matrix products and convolutions). Hours follow from
the share of the card's bf16 rate that a program reaches, which is assumed.
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.loops import CIFAR10, Recipe

PEAK = 989e12
"""Operations a second of an H100 SXM in bf16, dense, by NVIDIA's data sheet."""

LINK = 450e9
"""Bytes a second of its NVLink, one way, by the same."""

STEPS = 800_000


def operations(recipe: Recipe) -> tuple[float, float]:
    """Floating-point operations an image: of an evaluation, and of training on it."""
    net = recipe.module().net.train()
    x = torch.zeros(1, *recipe.spec.shape)
    # Because the counter does not know the fused attention of CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = net(x, torch.ones(1)).square().mean()
        forwards = counter.get_total_flops()
        loss.backward()
    return float(forwards), float(counter.get_total_flops())


def saved_bytes(recipe: Recipe) -> float:
    """Bytes an image that a bf16 forward pass keeps for the backward pass, beside the weights."""
    net = recipe.module().net.train()
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    casts = 2 * sum(p.numel() for p in net.parameters())  # bf16 copies, whatever the batch
    with torch.autocast("cpu", torch.bfloat16), saved_tensors_hooks(pack, lambda x: x):
        loss = net(torch.zeros(1, *recipe.spec.shape), torch.ones(1)).square().mean()
        total = sum(kept.values())
        del loss
    return max(0.0, total - casts)


def table(recipe: Recipe, utilisation: float) -> list[tuple[str, str]]:
    """The rows: what, and how much."""
    forwards, trained = operations(recipe)
    parameters = sum(p.numel() for p in recipe.module().net.parameters())
    step = trained * recipe.batch
    fixed = 16 * parameters + 2 * parameters  # weights, gradients, Adam twice; bf16 copies
    average = 4 * parameters
    activations = saved_bytes(recipe) * recipe.batch
    rows = [
        ("parameters", f"{parameters / 1e6:.1f} M"),
        ("operations an image, evaluation", f"{forwards / 1e9:.1f} GFLOP"),
        ("operations an image, training", f"{trained / 1e9:.1f} GFLOP"),
        (f"operations of {STEPS:,} steps of {recipe.batch}", f"{step * STEPS:.2e} FLOP"),
        ("memory: weights, gradients, Adam, EMA", f"{(fixed + average) / 2**30:.2f} GiB"),
        (f"memory: kept for the backward pass, {recipe.batch}", f"{activations / 2**30:.1f} GiB"),
    ]
    for cards in (1, 8):
        seconds = step / cards / (PEAK * utilisation)
        exchanged = 2 * (cards - 1) / cards * 4 * parameters / LINK
        hours = STEPS * (seconds + exchanged) / 3600
        speed = recipe.batch / (seconds + exchanged)
        rows.append((f"hours on {cards} H100", f"{hours:.1f} h, {speed:,.0f} images/s"))
    return rows


def main(args: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utilisation", type=float, default=0.3, help="share of the card's rate")
    given = parser.parse_args(args)
    print("\nThe CIFAR-10 recipe in bf16, computed, not measured\n")
    print(f"| what | computed, {given.utilisation:.0%} of {PEAK / 1e12:.0f} TFLOP/s |\n|---|---|")
    for name, value in table(CIFAR10, given.utilisation):
        print(f"| {name} | {value} |")
    print("\nGradients are exchanged after the backward pass, not beside it; kernels are assumed")
    print("to keep that share at a smaller batch, which 16 images a card on eight will not.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
