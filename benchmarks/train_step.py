"""Images a second in training: python -m benchmarks.train_step [--data-root data].

fit with the network of configs/cifar10.yaml and with a small one for MNIST, in turn with the loop
of diffusers' example around a network of the same size; the peer also in memory format
channels-last, and the convolutions of our network alone, whose operations a second are compared
with those of a large matrix product. With --compile ours is compiled, and the peer is not. Limits
are on processor time, because machines are shared. Without a folder of MNIST and CIFAR-10 the
images are noise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, channels_last, contiguous_format, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.data import Noise
from benchmarks.loops import CIFAR10, SMALL, Recipe, Step, diffusers_step
from benchmarks.report import Report
from benchmarks.timing import Spread, ratio
from benchmarks.turns import Turns
from ddpm_lightning import DiffusionModule
from ddpm_lightning import data as data_sets
from ddpm_lightning.callbacks import FastKernels
from ddpm_lightning.data.image_data import ImageData

LIMITS = {"CIFAR-10": 1.15, "MNIST": 1.2}
"""Of our images a second by the peer's."""

RECIPES = {"CIFAR-10": replace(CIFAR10, batch=16), "MNIST": SMALL}
"""Networks and batches; 16 is the example's batch, and 128 images take a minute on a CPU."""

CPU = torch.device("cpu")

Precision = Literal["32-true", "bf16-mixed"]
"""Of ours; the peer computes in float32, as its example does."""


def images_of(name: str, recipe: Recipe, root: str | None) -> ImageData:
    """The data of a recipe: noise, or the set of that name below a folder."""
    if root is None:
        return Noise(recipe.colours, recipe.side, recipe.batch, n=8 * recipe.batch)
    kind = {"CIFAR-10": data_sets.CIFAR10, "MNIST": data_sets.MNIST}[name]
    return kind(root=root, download=False, global_batch_size=recipe.batch)


def convolutions(net: nn.Module, x: Tensor) -> Step:
    """Every convolution of a network and its backward pass, on inputs of the shapes it meets."""
    calls: list[tuple[nn.Conv2d, Tensor, Tensor]] = []

    def keep(layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        x_in = given[0].detach().requires_grad_(bool(calls))  # images need no gradient
        calls.append((layer, x_in, torch.randn_like(made)))

    hooks = [
        one.register_forward_hook(keep) for one in net.modules() if isinstance(one, nn.Conv2d)
    ]
    with torch.no_grad():
        net(x, torch.zeros(len(x)))
    for hook in hooks:
        hook.remove()

    def run() -> None:
        for layer, given, gradient in calls:
            layer(given).backward(gradient)
            given.grad = None
        net.zero_grad()

    return run


def matrix_products() -> None:
    """Five products of 1024 × 1024 matrices."""
    one = torch.ones(1024, 1024)
    for _ in range(5):
        one @ one


def operations(step: Step) -> int:
    """Floating-point operations of a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def train(
    module: DiffusionModule,
    data: ImageData,
    max_steps: int,
    callbacks: Sequence[Callback],
    precision: Precision,
) -> None:
    """Run fit on the CPU, clipping gradients, without logs and saves."""
    with TemporaryDirectory() as folder:
        trainer = Trainer(
            default_root_dir=folder,
            accelerator="cpu",
            devices=1,
            precision=precision,
            max_steps=max_steps,
            gradient_clip_val=1.0,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
        )
        trainer.fit(module, data)


def measure(
    report: Report,
    name: str,
    recipe: Recipe,
    data: ImageData,
    turns: int,
    fast: bool,
    precision: Precision,
    compiled: bool = False,
) -> None:
    """Add the rows of a recipe; fast: convolutions of ours in channels-last (FastKernels)."""
    module = recipe.module(compiled)
    peers = {
        "diffusers": diffusers_step(recipe, CPU, None),
        "diffusers, channels-last": diffusers_step(recipe, CPU, None, channels_last=True),
    }
    alone, products = "our convolutions alone", "matrix products"
    parts: dict[str, Step] = {}
    if precision == "32-true":  # in which they run
        net = recipe.module().net.to(memory_format=channels_last if fast else contiguous_format)
        parts = {alone: convolutions(net, recipe.images(CPU)), products: matrix_products}
    timed = Turns({**peers, **parts}, 1, warm=1)
    train(module, data, 1 + turns, [timed, *([FastKernels()] if fast else [])], precision)
    ours = timed.seconds["fit"]
    for way, seconds in timed.seconds.items():
        if way == products:
            continue
        speed = Spread.of([recipe.batch / s for s in seconds.cpu])
        wall = Spread.of([recipe.batch / s for s in seconds.wall])
        report.add(f"{name}: {way}, images a second of processor time", speed, note=f"wall {wall}")
    for way in peers:
        limit = LIMITS[name] if way == "diffusers" and precision == "32-true" else None
        faster = ratio(timed.seconds[way].cpu, ours.cpu)
        report.add(f"{name}: fit / {way}", faster, at_least=limit)
    if parts:
        convolved, multiplied = timed.seconds[alone].cpu, timed.seconds[products].cpu
        report.add(f"{name}: share of our convolutions in a step", ratio(convolved, ours.cpu))
        more = operations(parts[alone]) / operations(matrix_products)
        rate = ratio([more * seconds for seconds in multiplied], convolved)
        report.add(f"{name}: operations a second, our convolutions / matrix products", rate)


def main(words: Sequence[str] | None = None) -> int:
    """Measure both recipes, print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data-root",
        "--data.root",
        help="folder of MNIST and CIFAR-10; default: noise",
    )
    parser.add_argument("--only", choices=RECIPES, help="one of the recipes")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--contiguous", action="store_true", help="without FastKernels")
    parser.add_argument("--compile", action="store_true", help="ours with --model.compile true")
    parser.add_argument("--precision", choices=get_args(Precision), default="32-true")
    given = parser.parse_args(words)
    compiled = ", ours compiled" * given.compile
    report = Report(
        f"Training in {given.precision}{compiled}, beside the loop of diffusers' example"
    )
    for name in [given.only] if given.only else RECIPES:
        recipe = RECIPES[name]
        data = images_of(name, recipe, given.data_root)
        fast, precision = not given.contiguous, given.precision
        measure(report, name, recipe, data, given.turns, fast, precision, given.compile)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
