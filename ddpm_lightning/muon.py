"""Muon for hidden matrices and AdamW for the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from typing_extensions import override

from ddpm_lightning.errors import InputError
from ddpm_lightning.optimization import Group, NetworkParameters, groups_by_decay


class MuonAdamW(Optimizer):
    """Muon for the hidden matrices of a network, AdamW for all else.

    Muon (Jordan et al. 2024) moves a matrix by its momentum made orthogonal: five Newton–Schulz
    iterations set all singular values to about 1. A convolution kernel counts as a matrix [out,
    in·height·width]. The update is scaled to the size of AdamW's (Liu et al. 2025, 0.2·sqrt(max of
    the sides)), so one learning rate, one schedule and one weight decay serve both. Norms and
    biases do not decay. The first and the last layer and embeddings are AdamW's.

    Args:
        params: Parameters of a network, or groups of them, which are taken as they are.
        lr: Learning rate.
        weight_decay: Decay per step and learning rate.
        momentum: Of Muon, in Nesterov's form.
        betas: Decay rates of AdamW's moments.
        eps: Of AdamW, added to the root of the second moment.

    Raises:
        InputError: This torch has no Muon, or FSDP2 has cut the matrices in shards.
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
        if not hasattr(torch.optim, "Muon"):
            raise InputError(
                f"MuonAdamW: torch {torch.__version__} has no Muon; pip install 'torch>=2.9', or "
                "use AdamWNoBiasDecay (--model.optimizer AdamWNoBiasDecay)"
            )
        matrix, vector = nn.Parameter(torch.zeros(1, 1)), nn.Parameter(torch.zeros(1))
        self._muon = torch.optim.Muon(
            [matrix], lr, weight_decay, momentum, adjust_lr_fn="match_rms_adamw"
        )
        self._adamw = AdamW([vector], lr, betas, eps, weight_decay)
        settings = [_settings(inner) for inner in (self._muon, self._adamw)]
        groups = [
            {**settings[not group.get("muon", False)], **group} for group in _by_method(params)
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
        """Let torch's Muon step kernels and matrices [out, ...] as views [out, rest]."""
        parameters = [one for one in group["params"] if one.grad is not None]
        matrices = [one.detach().flatten(1) for one in parameters]
        for parameter, matrix in zip(parameters, matrices, strict=True):
            matrix.grad = parameter.grad.flatten(1)
            if "momentum_buffer" in self.state[parameter]:
                buffer = self.state[parameter]["momentum_buffer"]
                self._muon.state[matrix]["momentum_buffer"] = buffer.flatten(1)
        self._muon.param_groups = [{**group, "params": matrices}]
        self._muon.step()
        for parameter, matrix in zip(parameters, matrices, strict=True):
            if not parameter.is_contiguous():  # its matrix is a copy
                parameter.copy_(matrix.view(parameter.shape))
            buffer = self._muon.state[matrix]["momentum_buffer"]
            self.state[parameter]["momentum_buffer"] = buffer.view(parameter.shape)
        self._muon.state.clear()


def _settings(optimizer: Optimizer) -> Group:
    """The settings of an optimizer's groups, and whether they are Muon's."""
    (group,) = optimizer.param_groups
    own = {key: value for key, value in group.items() if key != "params"}
    return {**own, "muon": not isinstance(optimizer, AdamW)}


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
