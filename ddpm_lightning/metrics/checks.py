"""What every metric asks of feature vectors."""

from __future__ import annotations

from torch import Tensor

from ddpm_lightning.errors import InputError


def check_features(*sets: Tensor, least: int, metric: str) -> None:
    """Refuse features that a metric cannot be computed from.

    Args:
        sets: One or two tensors [n, d].
        least: The smallest n.
        metric: Named in the message.

    Raises:
        InputError: They are no matrices of equally long rows, too few or not finite.
    """
    shapes = " and ".join(str(list(rows.shape)) for rows in sets)
    if any(rows.ndim != 2 for rows in sets) or len({rows.shape[1] for rows in sets}) > 1:
        raise InputError(
            f"{metric} reads features [n, d] of one length d, got {shapes}; compute them all with "
            "the same extractor"
        )
    if min(map(len, sets)) < least:
        raise InputError(
            f"{metric} needs {least} or more feature vectors, got {shapes}; use more images"
        )
    if not all(bool(rows.isfinite().all()) for rows in sets):
        raise InputError(
            f"{metric}: the features are not finite; look at the images and the weights of the "
            "extractor"
        )
