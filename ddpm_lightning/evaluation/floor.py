"""The floor: what the Fréchet distance says of two sets that differ by chance alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ddpm_lightning.errors import InputError
from ddpm_lightning.evaluation.compare import with_error
from ddpm_lightning.metrics.cached import Features
from ddpm_lightning.metrics.extrapolation import LEAST, extrapolated_frechet
from ddpm_lightning.metrics.jackknife import shuffled


@dataclass(frozen=True)
class Floor:
    """Real images against as many other real images; both numbers would be 0 without chance.

    Attributes:
        n: Images in each of the two sets.
        fd: Their Fréchet distance, which n images bias upwards.
        fd_inf: The same extrapolated to endless images on both sides.
        fd_inf_error: Standard error of ``fd_inf``.
    """

    n: int
    fd: float
    fd_inf: float
    fd_inf_error: float


def check_floor(sizes: Sequence[int], total: int) -> None:
    """Refuse sizes that cannot be measured, before any feature is computed.

    Raises:
        InputError: No size, too small a one, or two sets of it are more than there are images.
    """
    if not sizes or min(sizes) < LEAST or max(sizes) > total // 2:
        raise InputError(
            f"floor {list(sizes)}: give numbers from {LEAST} (for the extrapolation) to "
            f"{total // 2}, half of the {total} real images"
        )


def floors(real: Features, sizes: Sequence[int], seed: int = 0) -> list[Floor]:
    """Hold two disjoint random sets of real images against each other, at each size.

    Args:
        real: Features of the real images.
        sizes: Images in each set.
        seed: Seed of the choice.
    """
    order = shuffled(len(real), seed)
    found = []
    for n in sizes:
        a, b = (real.features[rows] for rows in (order[:n], order[n : 2 * n]))
        limit = extrapolated_frechet(a, b, seed)
        assert limit.spread is not None
        found.append(Floor(n, limit.values[0], limit.value, limit.spread))
    return found


def floor_table(found: Sequence[Floor], name: str) -> str:
    """Lay out floors as text, a line a size.

    Args:
        found: The floors.
        name: Name of the distance: ``fid``, ``fd_lenet``, …
    """
    lines = [f"{'real images':>11}  {name:>12}  {name + '_inf':>22}"]
    for one in found:
        limit = with_error(one.fd_inf, one.fd_inf_error)
        lines.append(f"{one.n:>11}  {one.fd:>12.4g}  {limit:>22}")
    return "\n".join(lines)
