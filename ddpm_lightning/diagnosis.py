"""What made a gradient non-finite: the data, the weights, the loss or a module of the network.

The batches of the step are gone through once more, forward and backward, with hooks on every
module, because looking at every value of every step would cost more than the step itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ddpm_lightning.batch import Batch
from ddpm_lightning.compilation import uncompiled
from ddpm_lightning.sharding import whole

MOST_LISTED = 8


class TrainingLoss(Protocol):
    """The loss of a training batch, as a step computes it."""

    def __call__(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the mean loss, the levels int64 [B], and the loss terms [B] by name."""


def cause_in_data(batch: Batch) -> str | None:
    """Name the samples of a training batch that are not finite, by their index in the split."""
    parts = {"x0": batch.x0, "the condition's image": batch.condition.image}
    parts["the condition's tokens"] = batch.condition.tokens
    for name, part in parts.items():
        if part is None:
            continue
        bad = ~part.flatten(1).isfinite().all(1).cpu()
        if bad.any():
            where = _listed("sample", batch.index.cpu()[bad])
            return f"the data: {name} of {where} of the training split is not finite"
    return None


def cause_in_weights(net: nn.Module) -> str | None:
    """Name the first parameter or buffer that is not finite."""
    name = first_non_finite(net)
    if name is None:
        return None
    if name in dict(net.named_buffers()):
        return f"the weights: net.{name} holds NaN since this step's forward pass, or longer"
    return f"the weights: net.{name} was not finite before the step"


def first_non_finite(module: nn.Module) -> str | None:
    """Return the name of the first parameter that is not finite, or buffer with NaN, if any.

    Buffers may hold infinities, as masks of attention do.
    """
    for name, parameter in module.named_parameters():
        if not is_finite(parameter):
            return name
    return next((name for name, b in module.named_buffers() if bool(whole(b.isnan().any()))), None)


def cause_in_repeat(
    net: nn.Module, loss_of: TrainingLoss, batch: Batch, batch_idx: int
) -> str | None:
    """Repeat a micro-batch, forward and backward, and name the first value that is not finite.

    Gradients and buffers are left as they are.

    Args:
        net: The network, whose modules are watched.
        loss_of: The training loss of a batch.
        batch: The micro-batch.
        batch_idx: Its index, which keys its noise.
    """
    buffers = [buffer.clone() for buffer in net.buffers()]
    with uncompiled(net), _Watch(net) as watch, torch.enable_grad():
        loss, t, terms = loss_of(batch, batch_idx)
        if watch.found is None:
            watch.found = _cause_in_terms(batch, t, terms)
        if watch.found is None and not is_finite(loss):
            watch.found = "the loss: its weighted mean is not finite, though every term is"
        parameters = [p for p in net.parameters() if p.requires_grad]
        torch.autograd.grad(loss, parameters, allow_unused=True)
    for buffer, before in zip(net.buffers(), buffers, strict=True):
        buffer.copy_(before)
    return watch.found


def cause_in_norm(net: nn.Module) -> str | None:
    """Name the largest gradient, if all are finite and only their norm is not."""
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    if not all(is_finite(gradient) for gradient in gradients.values()):
        return None
    sizes = {name: float(whole(gradient.abs().max())) for name, gradient in gradients.items()}
    name = max(sizes, key=lambda one: sizes[one])
    return (
        f"their norm: every gradient is finite, the largest {sizes[name]:.3g} of net.{name}, but "
        "the sum of their squares overflows float32"
    )


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite, of a sharded tensor on all processes."""
    return bool(whole(tensor.isfinite().all()))


def _cause_in_terms(batch: Batch, t: Tensor, terms: dict[str, Tensor]) -> str | None:
    for name, term in terms.items():
        bad = ~term.detach().isfinite().cpu()
        if bad.any():
            samples = _listed("sample", batch.index.cpu()[bad])
            levels = _listed("level", t.cpu()[bad])
            return (
                f"the loss: its term '{name}' is not finite for {samples} of the training split, "
                f"at {levels}, from a finite output of the network"
            )
    return None


def _listed(noun: str, numbers: Tensor) -> str:
    """Write out numbers, "sample 17" or "samples 3, 17 and 40 more"."""
    values = numbers.tolist()
    shown = ", ".join(map(str, values[:MOST_LISTED]))
    more = f" and {len(values) - MOST_LISTED} more" if len(values) > MOST_LISTED else ""
    return f"{noun}{'s' if len(values) > 1 else ''} {shown}{more}"


class _Watch:
    """Hooks on a network that find the first value that is not finite, forward or backward.

    ``found`` describes it once a pass is done; None: there is none.

    Args:
        net: The network.
    """

    def __init__(self, net: nn.Module) -> None:
        self.found: str | None = None
        self._net = net
        self._handles: list[RemovableHandle] = []
        self._makers: dict[int, str] = {}  # of each output, the outermost module
        self._outputs: list[Tensor] = []  # kept, so that no id is used twice

    def __enter__(self) -> _Watch:
        self._handles.append(self._net.register_forward_pre_hook(self._see_input))
        for name, module in self._net.named_modules():
            path = f"net.{name} ({type(module).__name__})" if name else "the network"
            hook = partial(self._see_output, path)
            self._handles.append(module.register_forward_hook(hook))
        for name, parameter in self._net.named_parameters():
            if parameter.requires_grad:
                hook = partial(self._see_gradient, f"of net.{name}")
                self._handles.append(parameter.register_hook(hook))
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _see_input(self, _: nn.Module, inputs: Any) -> None:
        if not all(map(is_finite, _tensors(inputs))):
            self.found = "the network's input: noised data or condition is not finite"

    def _see_output(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        tensors = [*_tensors(output)]
        bad = not all(map(is_finite, tensors))
        if self.found is None and bad and all(map(is_finite, _tensors(inputs))):
            self.found = f"{path} is the first module to return values that are not finite"
        for tensor in tensors:
            if tensor.requires_grad:
                if id(tensor) not in self._makers:
                    self._outputs.append(tensor)
                    self._handles.append(tensor.register_hook(partial(self._at, id(tensor))))
                self._makers[id(tensor)] = path

    def _at(self, tensor: int, gradient: Tensor) -> None:
        path = self._makers[tensor]
        if path == "the network":
            if self.found is None and not is_finite(gradient):
                self.found = "the loss: its gradient by the network's output is not finite"
        else:
            self._see_gradient(f"at the output of {path}", gradient)

    def _see_gradient(self, where: str, gradient: Tensor) -> None:
        if self.found is None and not is_finite(gradient):
            self.found = f"the backward pass: the gradient {where} is the first not to be finite"


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
