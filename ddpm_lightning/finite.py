"""Checks of the loss and the weights for NaN and infinities."""

from __future__ import annotations

from torch import Tensor, nn

from ddpm_lightning.errors import InputError

REMEDY = "gradient_clip_val: 1.0, a smaller learning rate, or bf16-mixed instead of 16-mixed"


def check_finite_loss(loss: Tensor, net: nn.Module, step: int) -> None:
    """Raise InputError, naming the first non-finite parameter, unless the loss is finite.

    The check synchronises the CPU with the device.
    """
    if not bool(loss.isfinite()):
        raise InputError(
            f"the loss is no longer finite at step {step} (first non-finite parameter: "
            f"{_first_non_finite(net) or 'none'}); resume from the last checkpoint with {REMEDY}"
        )


def check_finite_weights(net: nn.Module, step: int) -> None:
    """Raise InputError, called before saving, unless all parameters are finite."""
    if name := _first_non_finite(net):
        raise InputError(
            f"{name} is no longer finite at step {step}; nothing was saved, so the last "
            f"checkpoint is still good. Use {REMEDY}"
        )


def _first_non_finite(net: nn.Module) -> str | None:
    return next((n for n, p in net.named_parameters() if not bool(p.isfinite().all())), None)
