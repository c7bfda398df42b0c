"""Muon for hidden matrices and AdamW for the rest, as one optimizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from typing_extensions import override

from ddpm_lightning.errors import InputError
from ddpm_lightning.optimization import Group, NetworkParameters, groups_by_decay

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x³ and x⁵, which raise small singular values as fast as possible."""

STACK = 2**22
"""Numbers of matrices that are turned together: 16 MiB in float32."""


class MuonAdamW(Optimizer):
    """Muon for the hidden matrices of a network, AdamW for all else.

    Muon (Jordan et al. 2024) moves a matrix by its momentum made orthogonal: five Newton–Schulz
    iterations set all singular values to about 1. A convolution kernel counts as a matrix [out,
    in·height·width]. The update is scaled to the size of AdamW's (Liu et al. 2025, 0.2·sqrt(max of
    the sides)), so one learning rate, one schedule and one weight decay serve both. Norms and
    biases do not decay. The first and the last layer and embeddings are AdamW's.

    Args:
        params: Parameters of a network, or groups of them, which are taken as they are; of a group
            with ``muon: true`` lr, weight_decay and momentum count.
        lr: Learning rate.
        weight_decay: Decay per step and learning rate.
        momentum: Of Muon, in Nesterov's form.
        betas: Decay rates of AdamW's moments.
        eps: Of AdamW, added to the root of the second moment.

    Raises:
        InputError: FSDP2 has cut the matrices in shards.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        vector = nn.Parameter(torch.zeros(1))
        self._adamw = AdamW([vector], lr, betas, eps, weight_decay)
        (adamw,) = self._adamw.param_groups
        adamw = {key: value for key, value in adamw.items() if key != "params"}
        muon = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        groups = [
            {**(muon if group.get("muon") else adamw), "muon": False, **group}
            for group in _by_method(params)
        ]
        if any(hasattr(one, "device_mesh") for group in groups for one in group["params"]):
            raise InputError(
                "MuonAdamW turns whole matrices, and FSDP2 has cut them in shards; use DDP, or "
                "AdamWNoBiasDecay (--model.optimizer AdamWNoBiasDecay)"
            )
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Shared anew, because loading a state replaces both.
        self._adamw.state = self.state
        self._adamw.param_groups = [group for group in self.param_groups if not group["muon"]]
        self._adamw.step()
        for group in self.param_groups:
            if group["muon"]:
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: Group) -> None:
        """Step kernels and matrices [out, ...], those of one shape together."""
        alike: dict[Any, list[nn.Parameter]] = defaultdict(list)
        for one in group["params"]:
            if one.grad is not None:
                alike[len(one), one[0].numel(), one.device, one.dtype].append(one)
        for (rows, columns, *_), parameters in alike.items():
            rate = group["lr"] * 0.2 * max(rows, columns) ** 0.5
            together = max(1, STACK // (rows * columns))
            for k in range(0, len(parameters), together):
                some = parameters[k : k + together]
                updates = torch.stack([self._momentum(one, group["momentum"]) for one in some])
                for parameter, update in zip(some, orthogonal(updates), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.reshape(parameter.shape), alpha=-rate)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Average the gradient in, and look ahead as Nesterov: [out, rest]."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum_buffer"], momentum).flatten(1)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of matrices [k, m, n] to about 1.

    Those above a hundredth of a matrix's norm end between 0.68 and 1.14. float32 is rounded to
    bfloat16, as by Muon's authors, where the device multiplies that itself; elsewhere such
    products take many times as long.

    Source: Jordan et al. (2024), Muon: an optimizer for hidden layers in neural networks.
    """
    a, b, c = NEWTON_SCHULZ
    rounded = matrices.dtype == torch.float32 and _multiplies_bfloat16(matrices.device)
    x = matrices.bfloat16() if rounded else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)  # none is above 1
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are no emulation: on CUDA, and CPUs with AVX512_BF16."""
    if device.type == "cpu":
        return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())  # from torch 2.6 on
    return device.type == "cuda"


def _by_method(params: Iterable[Any]) -> list[Group]:
    """Group parameters by what steps them; groups are taken as they are."""
    hidden = params.hidden if isinstance(params, NetworkParameters) else None
    given = list(params)
    if given and isinstance(given[0], dict):
        return given
    if hidden is None:  # no network to ask: every matrix
        hidden = [one for one in given if one.ndim >= 2]
    chosen = {id(one) for one in hidden}
    groups = groups_by_decay([one for one in given if id(one) not in chosen])
    return [{"params": hidden, "muon": True}, *groups] if hidden else groups
