"""The floor: what the Fréchet distance says of two sets that differ by chance alone."""

from __future__ import annotations

from collections.abc import Sequence

from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics import Reference, Result, Score, extrapolated_frechet
from ddpm_lightning.metrics.extrapolation import LEAST
from ddpm_lightning.metrics.jackknife import shuffled


def check_floor(sizes: Sequence[int], total: int) -> None:
    """Raise InputError unless two sets of each size fit among ``total`` real images."""
    if not sizes or min(sizes) < LEAST or max(sizes) > total // 2:
        raise InputError(
            f"floor {list(sizes)}: give numbers from {LEAST} (for the extrapolation) to "
            f"{total // 2}, half of the {total} real images"
        )


def floors(real: Reference, sizes: Sequence[int], seed: int = 1) -> list[Result]:
    """Compare two disjoint random sets of real images with each other, at each size.

    Of each size the Fréchet distance, which n images bias upwards, and the same extrapolated to
    endless images on both sides; both would be 0 without chance.
    """
    extractor = real.measures.extractor
    assert extractor is not None
    features = real.features.features
    order = shuffled(len(features), seed)
    found = []
    for n in sizes:
        a, b = features[order[:n]], features[order[n : 2 * n]]
        limit = extrapolated_frechet(a, b, seed)
        assert limit.parts is not None
        raw = Score(limit.parts["values"][0])
        scores = {extractor.name: raw, f"{extractor.name}_inf": limit}
        found += real.results(scores, {"n": n, "reference_n": n, "seed": seed})
    return found
