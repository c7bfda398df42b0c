"""Checks for NaN and infinities in the loss and the weights, before they are averaged or saved."""

from __future__ import annotations

from torch import Tensor, nn

from ddpm_lightning.errors import InputError

CURE = "gradient_clip_val: 1.0, a smaller learning rate, or bf16-mixed instead of 16-mixed"


def check_finite_loss(loss: Tensor, net: nn.Module, step: int) -> None:
    """Raise InputError, with the first weights that are not finite, unless the loss is.

    Looking at it makes the CPU wait for the device.
    """
    if not bool(loss.isfinite()):
        broken = _first_broken(net) or "none"
        raise InputError(
            f"the loss is no longer finite at step {step} (first weights that are not: {broken}); "
            f"go on from the last checkpoint with {CURE}"
        )


def check_finite_weights(net: nn.Module, step: int) -> None:
    """Raise InputError, before anything is saved, unless all weights are finite."""
    if broken := _first_broken(net):
        raise InputError(
            f"{broken} is no longer finite at step {step}; nothing was saved, so the last "
            f"checkpoint is still good. Use {CURE}"
        )


def _first_broken(net: nn.Module) -> str | None:
    return next((n for n, p in net.named_parameters() if not bool(p.isfinite().all())), None)
