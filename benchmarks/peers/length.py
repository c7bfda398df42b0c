"""How long a peer is trained so that it has the time that ours took, here or elsewhere."""

from __future__ import annotations

import re
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

    As many images as its first seed saw, on this data set or one whose images are as large. The
    first seed itself: the seconds of ours, where cores, vector instructions and threads are those
    that ours had; else ours' images times a share that was measured with such instructions and as
    many threads.

    Args:
        peer: Its library.
        wanted: The data, minutes, name and seed of the run.
        runs: All runs so far.
        rates: Of each data set, the images that a peer sees in the time in which ours sees one,
            and the machine on which that was measured.

    Raises:
        InputError: Nothing says how many images the peer would have seen beside ours.
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
    shares = rates.get(data) or rates.get(alike, {})
    if peer in shares and _instructions(shares["machine"]) == _instructions(own["machine"]):
        images = round(own["images"] * shares[peer])
        return Length(after_images(images), f"images of ours × {shares[peer]:.4f}")
    raise InputError(
        f"ours was trained on {data} on another processor than this one ({own['machine']}; here "
        f"{here}), on which a peer sees more or fewer images in the same time; measure that on a "
        f"processor like that one: python -m benchmarks.rates --data {data}; or train all on this "
        "one: --out NEW.json"
    )


def _instructions(machine: str) -> str:
    """The vector instructions and threads of a machine, on which shares depend."""
    found = re.search(r" with (\S+, \d+ threads),", machine)
    return found[1] if found else machine
