"""How long a peer is trained so that it has the time that ours took, here or elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.peers.peer import Progress, after_images, after_seconds
from benchmarks.report import processor
from ddpm_lightning.errors import InputError

Entry = dict[str, Any]
"""A run of the results: data, minutes, who, seed, and what was found."""

OURS = "ours"

TIME = "seconds of ours"
"""What the length of a run is equal to where the clock ends it."""

LIKE = {"FashionMNIST": "MNIST"}
"""Data sets whose images are as large as another's, so that a step costs the same."""


@dataclass(frozen=True)
class Length:
    """How long a peer is trained.

    Args:
        progress: The share of it that is over.
        told: What it is equal to, in words.
    """

    progress: Progress
    told: str


def length_of(
    peer: str, wanted: Entry, runs: list[Entry], rates: dict[str, dict[str, Any]]
) -> Length:
    """How long a peer trains so that it has the time that ours took.

    Args:
        peer: Its library.
        wanted: The data, minutes, name and seed of the run.
        runs: All runs so far.
        rates: Of each data set, the images that a peer sees in the time in which ours sees one.

    Raises:
        InputError: The processor is not the one that ours had, and nothing says how many images
            the peer would have seen there.
    """
    data: str = wanted["data"]
    alike = LIKE.get(data, data)
    for run in runs:
        first = {"minutes": wanted["minutes"], "who": peer, "seed": 0}
        if first.items() <= run.items() and run["data"] in (data, alike):
            return Length(after_images(run["images"]), f"images of {peer}, {run['data']}, seed 0")
    own = next(run for run in runs if {**wanted, "who": OURS}.items() <= run.items())
    here = f"{processor()}, {torch.get_num_threads()} threads"
    if f"; {here}," in own["machine"]:
        return Length(after_seconds(own["seconds"]), TIME)
    if peer in rates.get(data, {}):
        images = round(own["images"] * rates[data][peer])
        return Length(after_images(images), f"images of ours × {rates[data][peer]:.4f}")
    raise InputError(
        f"ours was trained on {data} on another processor than this one ({own['machine']}; here "
        f"{here}), on which a peer sees more or fewer images in the same time; measure that on a "
        f"processor like that one: python -m benchmarks.rates --data {data}; or train all on this "
        "one: --out NEW.json"
    )
