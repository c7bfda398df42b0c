"""Which rows of a training batch forget their label, so that guidance can be learned."""

from __future__ import annotations

from ddpm_lightning.batch import Condition
from ddpm_lightning.configurable import Configurable
from ddpm_lightning.errors import InputError
from ddpm_lightning.randomness import BatchNoise, Draw


class LabelDropout(Configurable):
    """Forget label and tokens of a random share of the rows (Ho & Salimans 2022, alg. 1).

    Another rule is a subclass with its own ``__call__``.

    Args:
        share: Share of the rows; without any, the model never learns what "no class" is.

    Raises:
        InputError: share is not in [0, 1).
    """

    def __init__(self, share: float = 0.1) -> None:
        if not 0 <= share < 1:
            raise InputError(f"LabelDropout(share={share}): give a share in [0, 1)")
        self.share = share

    @property
    def teaches_null(self) -> bool:
        """Whether a model that is trained so knows what "no class" is."""
        return self.share > 0

    def __call__(self, condition: Condition, noise: BatchNoise) -> Condition:
        """Choose the rows of a training batch that forget.

        The noise is bound to the rows of the global batch; draws 1, 2, 3, … belong to the
        timesteps, so take those of ``randomness.Draw``.
        """
        return condition.null(noise.uniform(Draw.LABEL_DROPOUT) < self.share)
