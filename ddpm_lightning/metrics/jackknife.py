"""Standard errors of what is computed from all samples at once.

A delete-d jackknife: the number is computed without each of some disjoint random blocks of the
samples. A bootstrap would not do, because its resamples repeat samples, which distances between
sets, balls to neighbours and averages over pairs take for structure.

It errs on the safe side: where a number depends on what samples have in common (recall, coverage,
a kernel distance near 0), it is up to twice the scatter over fresh samples (Efron and Stein 1981).

Source: Shao and Wu (1989); Efron and Tibshirani (1993), sec. 11.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

BLOCKS = 20
"""The relative error of a standard error is about 1/√(2·20), a sixth."""


def shuffled(n: int, seed: int) -> Tensor:
    """0…n − 1 in random order, for samples may come a class after the other."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def jackknife(left_out: Sequence[float]) -> float:
    """Standard error from the values without each block in turn."""
    mean, blocks = fmean(left_out), len(left_out)
    return math.sqrt((blocks - 1) / blocks * sum((value - mean) ** 2 for value in left_out))


def means_left_out(values: Tensor, seed: int) -> list[float]:
    """Means of values [n] of one sample each, without each block in turn."""
    values = values.double()
    blocks = [values[rows] for rows in shuffled(len(values), seed).tensor_split(BLOCKS)]
    return [float((values.sum() - b.sum()) / (len(values) - len(b))) for b in blocks]


def binomial_error(share: float, n: int) -> float:
    """Standard error of a share of n independent samples."""
    return math.sqrt(share * (1 - share) / n)
